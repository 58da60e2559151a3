$head(long long n, const double *constants, $arrays) {
$constants    INDEPENDENT
    for (long long i = 0; i < n; i++) {
$body    }
$end}
