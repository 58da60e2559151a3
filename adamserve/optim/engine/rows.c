/* Rows that missed updates, brought up to date one after the other, each with its own gradient at the end.

   `runs` are runs of updates with the same constants. Known of each are its first update, the constants, and for every
   array the logarithm of what an update without a gradient multiplies it by (`logs`), and the sum of these logarithms
   over all updates before the run (`sums`). */
static inline long long run_of(long long runs, const long long *first, long long t) {
    long long low = 0, high = runs;
    while (high - low > 1) {
        const long long middle = (low + high) / 2;
        if (first[middle] <= t) low = middle; else high = middle;
    }
    return low;
}

static double sum_to(long long runs, const long long *first, const double *logs, const double *sums,
                     long long stride, long long t) {
    const long long r = run_of(runs, first, t);
    return sums[r * stride] + (double)(t - first[r] + 1) * logs[r * stride];
}

static double span(long long runs, const long long *first, const double *logs, const double *sums,
                   long long stride, long long from, long long to) {
    return sum_to(runs, first, logs, sums, stride, to) - sum_to(runs, first, logs, sums, stride, from);
}

static void fade(long long n, double factor, real *x) {
    for (long long i = 0; i < n; i++) {
        const real y = (real)(x[i] * factor);
        x[i] = fabs(y) < TINY ? 0 : y;
    }
}

/* Replay at most `horizon` of a row's missed updates; a row that `may_rest` is looked at every 8th update for whether it
   still moves. The rest of them but the last only scale the row, and the last one is replayed. What no move of w depends
   on is scaled once. */
void $name(long long n, long long width, const long long *rows, int *last, long long now, long long horizon,
           int may_rest, long long runs, const long long *first, const double *constants, const double *logs,
           const double *sums, const double *given, const $gradient *g, $arrays) {
    for (long long i = 0; i < n; i++) {
        const long long row = rows ? rows[i] : i, at = row * width;
        if (rows && i + 8 < n) {
            const long long ahead = rows[i + 8] * width;
            if (last) __builtin_prefetch(last + rows[i + 8], 1);
            $prefetch
        }
        if (last) {
            const long long began = last[row];
            long long done = began;
            last[row] = (int)(given ? now + 1 : now);
            if (done < now) {
                const long long stop = now - done > horizon ? done + horizon : now;
                long long r = run_of(runs, first, done + 1);
                int moving = 1;
                while (done < stop && moving) {
                    done++;
                    while (r + 1 < runs && first[r + 1] <= done) r++;
                    if (may_rest && done % 8 == 0)
                        moving = coast_moving(width, constants + r * $constants, $row);
                    else
                        coast(width, constants + r * $constants, $row);
                }
                if (done < now - 1) {
$steps                }
                if (done < now) {
                    r = run_of(runs, first, now);
                    coast(width, constants + r * $constants, $row);
                }
                {
$skips                }
            }
        }
        if (given) update(width, given, $given);
    }
}
