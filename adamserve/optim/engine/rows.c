/* Bring rows up to date that missed updates, and then apply each row's own gradient.

   A phase is a series of updates with the same constants. For each phase the caller gives its first update (`first`), its
   constants, and for every array the logarithm of the factor by which one update without a gradient shrinks it (`logs`)
   and the sum of these logarithms over all updates before the phase (`sums`). */
static inline long long phase_of(long long phases, const long long *first, long long t) {
    long long low = 0, high = phases;
    while (high - low > 1) {
        const long long middle = (low + high) / 2;
        if (first[middle] <= t) low = middle; else high = middle;
    }
    return low;
}

static double sum_to(long long phases, const long long *first, const double *logs, const double *sums,
                     long long stride, long long t) {
    const long long r = phase_of(phases, first, t);
    return sums[r * stride] + (double)(t - first[r] + 1) * logs[r * stride];
}

static double span(long long phases, const long long *first, const double *logs, const double *sums,
                   long long stride, long long from, long long to) {
    return sum_to(phases, first, logs, sums, stride, to) - sum_to(phases, first, logs, sums, stride, from);
}

static void fade(long long n, double factor, real *x) {
    for (long long i = 0; i < n; i++) {
        const real y = (real)(x[i] * factor);
        x[i] = fabs(y) < TINY ? 0 : y;
    }
}

/* A row's missed updates are replayed, at most `horizon` of them. If it `may_rest`, every 8th replay checks whether w still
   moves. The others only shrink the row, by one factor, but the last of them is replayed. Slots on which no move of w
   depends are not replayed: one factor shrinks them. */
void $name(long long n, long long width, const long long *rows, int *last, long long now, long long horizon,
           int may_rest, long long phases, const long long *first, const double *constants, const double *logs,
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
                long long r = phase_of(phases, first, done + 1);
                int moving = 1;
                while (done < stop && moving) {
                    done++;
                    while (r + 1 < phases && first[r + 1] <= done) r++;
                    if (may_rest && done % 8 == 0)
                        moving = coast_moving(width, constants + r * $constants, $row);
                    else
                        coast(width, constants + r * $constants, $row);
                }
                if (done < now - 1) {
$steps                }
                if (done < now) {
                    r = phase_of(phases, first, now);
                    coast(width, constants + r * $constants, $row);
                }
                {
$skips                }
            }
        }
        if (given) update(width, given, $given);
    }
}
