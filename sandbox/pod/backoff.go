package pod

import "time"

// backOff is kubelet's: the first restart is immediate, then base, doubled each time up to 30 times base, and
// forgotten when nothing was restarted for 60 times base.
type backOff struct {
	base  time.Duration
	delay time.Duration // before the next restart; zero before the first
	since time.Time     // of the last restart
}

// next returns how long to wait after an end at now.
func (b *backOff) next(now time.Time) time.Duration {
	if b.delay == 0 || now.Sub(b.since) > 60*b.base {
		b.delay = 0
		return 0
	}
	return b.delay
}

// started tells that a restart takes place.
func (b *backOff) started(now time.Time) {
	b.delay = min(max(2*b.delay, b.base), 30*b.base)
	b.since = now
}
