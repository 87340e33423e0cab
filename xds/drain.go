package xds

import (
	"context"
	"time"
)

// Drain asks proxies to connect elsewhere, one after the other, so that the other replicas do not
// get all of them at once. The first quarter of d passes before that: load balancers need
// it to notice that this replica is not ready any more. In the following half the streams end; the rest of d
// is left for those that came meanwhile. It returns after d, or when nobody is connected, or when ctx ends.
// New streams are still accepted: they may come before the news that this replica is going.
func (s *Server) Drain(ctx context.Context, d time.Duration) {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	pause := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-deadline.C:
		case <-s.stopping:
		case <-ctx.Done():
		}
		return false
	}
	if !pause(d / 4) {
		return
	}
	leaving := s.connected()
	for i, ses := range leaving {
		close(ses.leave)
		ses.kick()
		if i < len(leaving)-1 && !pause(d/2/time.Duration(len(leaving))) {
			return
		}
	}
	for len(s.connected()) > 0 && pause(50*time.Millisecond) {
	}
}
