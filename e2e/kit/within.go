package kit

import (
	"testing"
	"time"
)

// Within waits until problem returns "", and gives the time that it took. When that does not happen within the limit, the test ends with the last problem. A
// limit is for machines that are busy with other things, never a measurement.
func Within(tb testing.TB, limit time.Duration, problem func() string) time.Duration {
	tb.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		p := problem()
		if p == "" {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			tb.Fatalf("after %s: %s", limit, p)
		}
	}
}
