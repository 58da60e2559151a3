"""What to watch: Prometheus' recording and alerting rules, and Grafana's dashboards, as data.

The files in deploy/ are made from here by `make deploy-files`.
"""
