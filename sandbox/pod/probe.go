package pod

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

type probeKind string

const (
	startup   probeKind = "Startup"
	readiness probeKind = "Readiness"
	liveness  probeKind = "Liveness"
)

// probeAll begins to probe an instance whose postStart hook is done. It returns at once.
func (c *container) probeAll(ctx context.Context, in *instance) {
	if p := c.spec.StartupProbe; p != nil {
		go c.probe(ctx, in, startup, p)
		return
	}
	c.startedUp(ctx, in)
}

// startedUp marks the instance as started, which releases readiness and liveness probes and what waits for a sidecar.
func (c *container) startedUp(ctx context.Context, in *instance) {
	c.mark(in, func() {
		c.started = true
		c.ready = c.spec.ReadinessProbe == nil
	})
	c.rise.Do(func() { close(c.up) })
	if p := c.spec.ReadinessProbe; p != nil {
		go c.probe(ctx, in, readiness, p)
	}
	if p := c.spec.LivenessProbe; p != nil {
		go c.probe(ctx, in, liveness, p)
	}
}

// mark changes the container's status, provided that the instance is still the running one.
func (c *container) mark(in *instance, change func()) {
	c.w.mu.Lock()
	if c.current == in && c.state.Running != nil {
		change()
	}
	c.w.mu.Unlock()
	c.w.statusChanged()
}

// rhythm is how often an instance is probed. kubelet's ticker runs from the start of the pod's probe worker with
// periods of whole seconds; here the ticks that count begin one period after the initial delay, and until something
// answered for the first time there are extra attempts between them, at once and then whenever a twentieth of the time
// since the start has passed. A container is thus seen ready at most a twentieth later than it is.
type rhythm struct {
	begin  time.Time
	period time.Duration
	tick   time.Time // next that counts
	eager  bool
}

// quickest is the shortest distance of two extra attempts.
const quickest = 5 * time.Millisecond

// next returns when to probe after now, and whether it counts.
func (r *rhythm) next(now time.Time, first bool) (time.Time, bool) {
	if r.eager {
		at := now.Add(max(quickest, now.Sub(r.begin)/20))
		if first {
			at = now
		}
		if at.Before(r.tick) {
			return at, false
		}
	}
	at := r.tick
	// A probe that took longer than its period misses ticks, as with a time.Ticker.
	for r.tick = r.tick.Add(r.period); r.tick.Before(now); {
		r.tick = r.tick.Add(r.period)
	}
	return at, true
}

// probe probes until the instance ends or a startup probe is decided (kubelet: prober/worker.go).
func (c *container) probe(ctx context.Context, in *instance, kind probeKind, p *corev1.Probe) {
	begin := in.started.Add(seconds(p.InitialDelaySeconds, 0))
	if begin.Before(time.Now()) {
		begin = time.Now()
	}
	if !wait(ctx, time.Until(begin)) {
		return
	}
	r := rhythm{begin: begin, period: seconds(p.PeriodSeconds, 10), eager: kind != liveness && p.Exec == nil}
	r.tick = begin.Add(r.period)
	if p.Exec != nil && kind != liveness {
		// A process costs too much for extra attempts, but not for a first one at once.
		r.tick = begin
	}
	failures, successes := threshold(p.FailureThreshold, 3), threshold(p.SuccessThreshold, 1)
	last, run := false, 0
	for first := true; ; first = false {
		at, counts := r.next(time.Now(), first)
		if !wait(ctx, time.Until(at)) {
			return
		}
		ok, message := c.attempt(ctx, in, kind, p)
		if ctx.Err() != nil {
			return
		}
		if !ok && !counts {
			continue
		}
		if !ok {
			c.w.event(corev1.EventTypeWarning, "Unhealthy", "%s", message)
		} else if r.eager {
			r.eager = false
			r.tick = time.Now().Add(r.period)
		}
		if run == 0 || ok != last {
			last, run = ok, 0
		}
		run++
		if ok && run < successes || !ok && run < failures {
			continue
		}
		if c.decide(ctx, in, kind, p, ok) {
			return
		}
	}
}

// decide acts on a result that reached its threshold; true when there is no more to probe.
func (c *container) decide(ctx context.Context, in *instance, kind probeKind, p *corev1.Probe, ok bool) bool {
	switch {
	case kind == readiness:
		c.mark(in, func() { c.ready = ok })
		return false
	case ok && kind == startup:
		c.startedUp(ctx, in)
		return true
	case ok:
		return false
	}
	if c.w.ctx.Err() != nil {
		// kubelet stops liveness and startup probes of a pod that is being deleted.
		return true
	}
	name := "liveness"
	if kind == startup {
		name = "startup"
	}
	c.w.event(corev1.EventTypeNormal, "Killing", "Container %s failed %s probe, will be restarted", c.spec.Name, name)
	grace := in.grace
	if p.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
	}
	c.kill(in, time.Now().Add(grace), nil)
	return true
}

// attempt probes once; message is kubelet's event text when it failed.
func (c *container) attempt(ctx context.Context, in *instance, kind probeKind, p *corev1.Probe) (ok bool, message string) {
	var out string
	var err error
	// An error, as opposed to a failure, says nothing about the container and is tried again (kubelet: maxProbeRetries).
	for range 3 {
		ok, out, err = c.ask(ctx, in, p)
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return false, string(kind) + " probe errored and resulted in unknown state: " + err.Error()
	}
	return ok, string(kind) + " probe failed: " + out
}

func seconds(n int32, otherwise int32) time.Duration {
	if n == 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

func threshold(n int32, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return int(n)
}
