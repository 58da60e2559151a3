"""Watching: how a job stands, metrics and their pages, and Prometheus' rules and Grafana's dashboards as data.

The files in deploy/ are made from here by `make deploy-files`.
"""
