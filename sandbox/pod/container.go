package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// minimumGrace is what is left at least between a preStop hook that took all the grace and SIGKILL (kubelet:
// minimumGracePeriodInSeconds).
const minimumGrace = 2 * time.Second

// container is one container of a pod over all its restarts.
type container struct {
	w       *worker
	spec    *corev1.Container
	init    bool // one of spec.initContainers
	sidecar bool // an init container with restartPolicy Always

	tried chan struct{} // closed when the first attempt to start, postStart hook included, is over
	up    chan struct{} // closed when the container has started for the first time: hook done, startup probe passed
	over  chan struct{} // closed when it will not start again and no process is left
	first sync.Once     // for tried
	rise  sync.Once     // for up

	// Under w.mu. What states point at is replaced, never changed.
	state    corev1.ContainerState
	last     corev1.ContainerState
	restarts int32
	id       string
	begun    bool // supervise was called
	ready    bool
	started  bool
	current  *instance
	former   *instance // the one before, for logs
}

// instance is one process of a container.
type instance struct {
	*process
	log         *logFile
	termination string // path of the host for /dev/termination-log
	grace       time.Duration
	ending      sync.Once
	readiness   chan struct{} // a hint that readiness should be probed now
}

// configError is a container that cannot be started as it is written; reason is kubelet's.
type configError struct {
	reason string
	err    error
}

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

func newContainer(w *worker, spec *corev1.Container) *container {
	return &container{w: w, spec: spec, tried: make(chan struct{}), up: make(chan struct{}), over: make(chan struct{})}
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// begin calls supervise in a goroutine.
func (c *container) begin() {
	c.w.mu.Lock()
	c.begun = true
	c.w.mu.Unlock()
	go c.supervise()
}

// supervise starts the container again and again as its restart policy says, until the pod is to stop.
func (c *container) supervise() {
	defer func() {
		close(c.over)
		c.w.statusChanged()
	}()
	defer c.first.Do(func() { close(c.tried) })
	back := backOff{base: c.w.r.cfg.BackOff}
	pull := c.w.r.cfg.BackOff / 10
	for attempt := 0; c.w.ctx.Err() == nil; attempt++ {
		err := c.live(attempt > 0)
		c.first.Do(func() { close(c.tried) })
		var wrong *configError
		if errors.As(err, &wrong) {
			// Nothing ran: kubelet tries such a container with each sync and counts no restart.
			c.set(waiting(wrong.reason, wrong.Error()))
			c.w.event(corev1.EventTypeWarning, "Failed", "Error: %s", wrong.Error())
			attempt--
			if !wait(c.w.ctx, pull) {
				return
			}
			pull = min(2*pull, c.w.r.cfg.BackOff)
			continue
		}
		if !c.restart() || c.w.ctx.Err() != nil {
			return
		}
		if delay := back.next(time.Now()); delay > 0 {
			c.crashed(delay)
			if !wait(c.w.ctx, delay) {
				return
			}
		}
		back.started(time.Now())
	}
}

// restart says whether the container, having ended, runs again.
func (c *container) restart() bool {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	t := c.state.Terminated
	if t == nil {
		return true
	}
	if rule, ok := matchRule(c.spec.RestartPolicyRules, t.ExitCode); ok {
		return rule == corev1.ContainerRestartRuleActionRestart
	}
	policy := c.w.pod.Spec.RestartPolicy
	if c.spec.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.spec.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return t.ExitCode != 0
	}
	// An ordinary init container has done its work when it succeeded, whatever the pod's policy.
	return !c.init || c.sidecar || t.ExitCode != 0
}

func matchRule(rules []corev1.ContainerRestartRule, code int32) (corev1.ContainerRestartRuleAction, bool) {
	for _, r := range rules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action, true
		}
	}
	return "", false
}

// crashed shows a container that waits for its restart.
func (c *container) crashed(delay time.Duration) {
	pod := c.w.pod
	message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, c.spec.Name, pod.Name, pod.Namespace, pod.UID)
	c.w.mu.Lock()
	c.last = c.state
	c.state = waiting("CrashLoopBackOff", message)
	c.w.mu.Unlock()
	c.w.statusChanged()
	c.w.event(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", c.spec.Name, pod.Name, pod.Namespace, pod.UID)
}

func (c *container) set(s corev1.ContainerState) {
	c.w.mu.Lock()
	c.state = s
	c.w.mu.Unlock()
	c.w.statusChanged()
}

func (c *container) succeeded() bool {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return c.state.Terminated != nil && c.state.Terminated.ExitCode == 0
}

// live is one instance from start to end. An error of type *configError means that nothing ran.
func (c *container) live(again bool) error {
	in, err := c.start(again)
	if err != nil {
		var wrong *configError
		if !errors.As(err, &wrong) {
			c.startFailed(err, again)
		}
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-in.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if c.postStart(ctx, in) {
		c.first.Do(func() { close(c.tried) })
		c.probeAll(ctx, in)
	}
	<-in.done
	cancel()
	c.ended(in)
	return nil
}

// start prepares and launches an instance and shows it running.
func (c *container) start(again bool) (*instance, error) {
	w := c.w
	spec, err := c.prepare()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	attempt := c.restarts
	if again {
		attempt++
	}
	s := w.sandbox
	w.mu.Unlock()
	if s == nil {
		return nil, &configError{"ContainerCreating", errors.New("the pod is stopping")}
	}
	in := &instance{
		grace:       w.grace(),
		termination: w.dir("termination", c.spec.Name),
		readiness:   make(chan struct{}, 1),
	}
	if err := os.WriteFile(in.termination, nil, 0o666); err != nil {
		return nil, err
	}
	if err := os.Chmod(in.termination, 0o666); err != nil {
		return nil, err
	}
	in.log, err = openLog(w.dir("logs", c.spec.Name), attempt)
	if err != nil {
		return nil, err
	}
	w.event(corev1.EventTypeNormal, "Created", "Created container: %s", c.spec.Name)
	p, err := in.log.launch(spec, s.pidNS())
	if err != nil {
		in.log.end()
		return nil, err
	}
	in.process = p
	w.remember(c.spec.Name, p)
	w.mu.Lock()
	if again {
		c.restarts++
		if c.state.Terminated != nil {
			c.last = c.state
		}
	}
	c.former, c.current = c.current, in
	c.id = "weft://" + randomID()
	c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(p.started)}}
	c.ready, c.started = false, false
	if w.ctx.Err() != nil {
		// The pod began to stop meanwhile, and end may have looked before there was anything to end.
		p.signal(unix.SIGKILL)
	}
	w.mu.Unlock()
	w.statusChanged()
	w.event(corev1.EventTypeNormal, "Started", "Started container %s", c.spec.Name)
	return in, nil
}

// startFailed shows a container whose program could not be executed, as runc's failures are shown.
func (c *container) startFailed(err error, again bool) {
	now := metav1.Now()
	c.w.mu.Lock()
	if again {
		c.restarts++
		if c.state.Terminated != nil {
			c.last = c.state
		}
	}
	c.id = "weft://" + randomID()
	c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: 128, Reason: "StartError", Message: err.Error(), StartedAt: now, FinishedAt: now, ContainerID: c.id,
	}}
	c.w.mu.Unlock()
	c.w.statusChanged()
	c.w.event(corev1.EventTypeWarning, "Failed", "Error: %v", err)
}

// ended shows what is left of an instance.
func (c *container) ended(in *instance) {
	in.log.end()
	t := &corev1.ContainerStateTerminated{
		ExitCode:   int32(in.code),
		Reason:     "Completed",
		Message:    c.lastWords(in),
		StartedAt:  metav1.NewTime(in.started),
		FinishedAt: metav1.NewTime(in.finished),
	}
	if in.code != 0 {
		t.Reason = "Error"
	}
	_ = os.Remove(c.w.dir("pids", c.spec.Name))
	c.w.mu.Lock()
	t.ContainerID = c.id
	c.state = corev1.ContainerState{Terminated: t}
	c.ready = false
	if !c.sidecar || c.w.ctx.Err() != nil {
		c.started = false
	}
	c.w.mu.Unlock()
	c.w.statusChanged()
}

// lastWords is the termination message (Kubernetes API: Container.terminationMessagePolicy; 4096 bytes, or the last
// 2048 bytes or 80 lines of the log).
func (c *container) lastWords(in *instance) string {
	data, _ := os.ReadFile(in.termination)
	if len(data) > 0 {
		return string(data[:min(len(data), 4096)])
	}
	if c.spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && in.code != 0 {
		return in.log.tail(80, 2048)
	}
	return ""
}

// kill ends an instance: preStop hook, SIGTERM, SIGKILL at the deadline. It returns when the process is gone. Further
// calls wait for the first. A turn that is not nil holds the signal back until it is closed or the deadline has come.
func (c *container) kill(in *instance, deadline time.Time, turn <-chan struct{}) {
	in.ending.Do(func() {
		ctx, cancel := context.WithDeadline(c.w.hurry, deadline)
		defer cancel()
		if time.Until(deadline) > 0 {
			c.preStop(ctx, in)
		}
		if turn != nil {
			select {
			case <-turn:
			case <-ctx.Done():
			case <-in.done:
			}
		}
		if least := time.Now().Add(minimumGrace); deadline.Before(least) {
			deadline = least
		}
		in.signal(c.stopSignal())
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case <-in.done:
			return
		case <-timer.C:
		case <-c.w.hurry.Done():
		}
		in.signal(unix.SIGKILL)
	})
	<-in.done
}

func (c *container) stopSignal() unix.Signal {
	if l := c.spec.Lifecycle; l != nil && l.StopSignal != nil {
		if sig := unix.SignalNum(string(*l.StopSignal)); sig != 0 {
			return sig
		}
	}
	return unix.SIGTERM
}

// end is kill for a pod that stops: it returns when supervise has.
func (c *container) end(deadline time.Time, turn <-chan struct{}) {
	c.w.mu.Lock()
	in := c.current
	running := c.state.Running != nil
	begun := c.begun
	c.w.mu.Unlock()
	if in != nil && running {
		c.w.event(corev1.EventTypeNormal, "Killing", "Stopping container %s", c.spec.Name)
		c.kill(in, deadline, turn)
	}
	if begun {
		<-c.over
	}
}
