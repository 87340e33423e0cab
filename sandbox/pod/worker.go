package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// worker lives as long as one pod, as kubelet's pod worker does.
type worker struct {
	r      *Runner
	pod    *corev1.Pod                // as it was started
	latest atomic.Pointer[corev1.Pod] // with the labels and annotations of now

	ctx    context.Context // ends when the pod is to stop; processes do not end with it
	cancel context.CancelFunc
	ended  chan struct{} // closed when no process of the pod is left and its network is released

	mu         sync.Mutex
	startTime  time.Time
	sandbox    *sandbox
	ips        []string     // kept when the sandbox is gone, as in Kubernetes
	inits      []*container // ordinary init containers and sidecars, in the order of the spec
	containers []*container
	volumes    map[string]*volume
	failure    string // reason of a pod that failed as a whole, such as DeadlineExceeded
	message    string
	stopping   bool
	deadline   time.Time // of the grace, while stopping
	told       corev1.PodStatus

	hurry context.Context // ends when what is left of the grace is void
	rush  context.CancelFunc

	changed chan struct{}
	quit    chan struct{} // closed when nothing changes any more
	quiet   chan struct{} // closed when the last status was told
	once    sync.Once     // for quit
}

func newWorker(r *Runner, pod *corev1.Pod) *worker {
	w := &worker{
		r: r, pod: pod,
		ended:     make(chan struct{}),
		startTime: time.Now(),
		volumes:   map[string]*volume{},
		changed:   make(chan struct{}, 1),
		quit:      make(chan struct{}),
		quiet:     make(chan struct{}),
	}
	w.latest.Store(pod)
	w.hurry, w.rush = context.WithCancel(context.Background())
	w.ctx, w.cancel = context.WithCancel(context.Background())
	for i := range pod.Spec.InitContainers {
		c := newContainer(w, &pod.Spec.InitContainers[i])
		c.init = true
		c.sidecar = c.spec.RestartPolicy != nil && *c.spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
		w.inits = append(w.inits, c)
	}
	for i := range pod.Spec.Containers {
		w.containers = append(w.containers, newContainer(w, &pod.Spec.Containers[i]))
	}
	for _, c := range w.every() {
		reason := "ContainerCreating"
		if len(w.inits) > 0 {
			reason = "PodInitializing"
		}
		c.state = waiting(reason, "")
	}
	return w
}

func (w *worker) name() string { return w.pod.Namespace + "/" + w.pod.Name }

func (w *worker) dir(elements ...string) string {
	return w.r.path(append([]string{"pods", string(w.pod.UID)}, elements...)...)
}

// every returns all containers in the order in which they start.
func (w *worker) every() []*container {
	return append(append([]*container(nil), w.inits...), w.containers...)
}

func (w *worker) event(kind, reason, format string, args ...any) {
	w.r.cfg.Event(w.pod, kind, reason, fmt.Sprintf(format, args...))
}

// run is the life of the pod.
func (w *worker) run() {
	go w.tell()
	w.statusChanged()
	if d := w.pod.Spec.ActiveDeadlineSeconds; d != nil {
		timer := time.AfterFunc(time.Duration(*d)*time.Second, w.overdue)
		defer timer.Stop()
	}
	if w.setUp() && w.initialise() {
		w.work()
	}
	w.finish()
	w.statusChanged()
	close(w.ended)
}

// overdue ends a pod that ran longer than it may.
func (w *worker) overdue() {
	w.mu.Lock()
	if !w.stopping {
		w.failure, w.message = "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
		w.deadline = time.Now().Add(w.grace())
	}
	w.mu.Unlock()
	w.event(corev1.EventTypeNormal, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
	w.cancel()
}

func (w *worker) grace() time.Duration {
	if g := w.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		return time.Duration(*g) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// setUp makes volumes and sandbox, however long that takes. False: the pod is to stop.
func (w *worker) setUp() bool {
	if !w.retry(func() error { return w.makeFiles() }, "FailedMount", "%v") {
		return false
	}
	if !w.retry(w.makeVolumes, "FailedMount", "%v") {
		return false
	}
	ok := w.retry(func() error {
		s, err := w.makeSandbox()
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.sandbox = s
		for _, ip := range s.ips {
			w.ips = append(w.ips, ip.String())
		}
		w.mu.Unlock()
		return nil
	}, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v")
	w.statusChanged()
	return ok && w.retry(w.makeHosts, "FailedMount", "%v")
}

// retry calls step until it succeeds or the pod is to stop, telling each failure as an event. The delay begins with a
// tenth of Config.BackOff and doubles up to that: kubelet tries a sandbox again with its next sync, about each 10 s.
func (w *worker) retry(step func() error, reason, format string) bool {
	for delay := w.r.cfg.BackOff / 10; ; delay = min(2*delay, w.r.cfg.BackOff) {
		if w.ctx.Err() != nil {
			return false
		}
		err := step()
		if err == nil {
			return true
		}
		if w.ctx.Err() != nil {
			return false
		}
		w.event(corev1.EventTypeWarning, reason, format, err)
		w.setMessage(reason, err)
		if !wait(w.ctx, delay) {
			return false
		}
	}
}

// setMessage lets `get pod -o yaml` show why the containers are not even tried.
func (w *worker) setMessage(reason string, err error) {
	w.mu.Lock()
	for _, c := range w.every() {
		if c.state.Waiting != nil {
			c.state = waiting(c.state.Waiting.Reason, reason+": "+err.Error())
		}
	}
	w.mu.Unlock()
	w.statusChanged()
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// initialise runs init containers in order; a sidecar lets the next go on once it has started, and stays. False: the
// pod has failed or is to stop.
func (w *worker) initialise() bool {
	w.mu.Lock()
	for _, c := range w.every() {
		if c.state.Waiting != nil {
			c.state = waiting(c.state.Waiting.Reason, "")
		}
	}
	w.mu.Unlock()
	for _, c := range w.inits {
		c.begin()
		var up <-chan struct{}
		if c.sidecar {
			up = c.up
		}
		select {
		case <-up:
		case <-c.over:
		case <-w.ctx.Done():
		}
		if w.ctx.Err() != nil || !c.sidecar && !c.succeeded() {
			return false
		}
		w.statusChanged()
	}
	return true
}

// work starts the containers and returns when all of them have ended for good, or the pod is to stop. They start in
// order: kubelet starts the next when the postStart hook of the one before is done, and pods rely on it.
func (w *worker) work() {
	for _, c := range w.containers {
		c.begin()
		select {
		case <-c.tried:
		case <-c.over:
		case <-w.ctx.Done():
		}
	}
	for _, c := range w.containers {
		select {
		case <-c.over:
		case <-w.ctx.Done():
			return
		}
	}
}

// finish ends all processes and releases the sandbox, as kubelet does (pkg/kubelet/kuberuntime: killContainer,
// terminationOrdering): all preStop hooks begin at once, those of sidecars too; ordinary containers get their signal when their
// hook is done, a sidecar when its hook is done and the ordinary containers and all sidecars after it are gone.
// Volumes and logs stay until Stop: those of a finished Job are still asked for.
func (w *worker) finish() {
	// Nothing may start any more, whatever the reason for finishing.
	w.cancel()
	w.mu.Lock()
	if w.deadline.IsZero() {
		w.deadline = time.Now().Add(w.grace())
	}
	deadline := w.deadline
	w.mu.Unlock()

	var all, ordinary sync.WaitGroup
	for _, c := range w.every() {
		if !c.sidecar {
			ordinary.Go(func() { c.end(deadline, nil) })
		}
	}
	gone := make(chan struct{})
	all.Go(func() { ordinary.Wait(); close(gone) })
	turn := gone
	for i := len(w.inits) - 1; i >= 0; i-- {
		if c := w.inits[i]; c.sidecar {
			mine, next := turn, make(chan struct{})
			all.Go(func() { c.end(deadline, mine); close(next) })
			turn = next
		}
	}
	all.Wait()
	w.mu.Lock()
	s := w.sandbox
	w.sandbox = nil
	w.mu.Unlock()
	if s != nil {
		w.unmake(s)
	}
}

// stop is Runner.Stop.
func (w *worker) stop(ctx context.Context, grace time.Duration) {
	w.mu.Lock()
	if !w.stopping {
		w.stopping = true
		w.deadline = time.Now().Add(grace)
	}
	w.mu.Unlock()
	w.cancel()
	unhook := context.AfterFunc(ctx, w.rush)
	defer unhook()
	if grace <= 0 {
		w.rush()
	}
	// A pod that was finishing by itself has its own deadline, which may be later than this one.
	defer time.AfterFunc(grace+minimumGrace, w.rush).Stop()
	<-w.ended
	w.once.Do(func() { close(w.quit) })
	<-w.quiet
	w.endVolumes()
	w.forget()
}

// forget removes the pod's files and what is mounted in them.
func (w *worker) forget() {
	if err := removeTree(w.dir()); err != nil {
		w.r.log.Warn("files of a pod are not fully removed", "pod", w.name(), "error", err)
	}
}

// remember writes down a process for Clean of a later run. Without it, the kernel still ends the process with ours.
func (w *worker) remember(name string, p *process) {
	id, err := identity(p.pid)
	if err == nil {
		err = os.WriteFile(w.dir("pids", name), []byte(id), 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.r.log.Warn("process of a pod is not recorded", "pod", w.name(), "container", name, "error", err)
	}
}

// makeFiles makes the pod's directories and the files that do not depend on its addresses.
func (w *worker) makeFiles() error {
	for _, dir := range []string{"", "pids", "volumes", "logs", "etc", "termination", "roots"} {
		if err := os.MkdirAll(w.dir(dir), 0o755); err != nil {
			return err
		}
	}
	for name, content := range w.etc() {
		if err := os.WriteFile(filepath.Join(w.dir("etc"), name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// tell passes each change on. One goroutine does it, so that changes are told in order and a slow listener sees the
// latest state next instead of holding the pod.
func (w *worker) tell() {
	defer close(w.quiet)
	for last := false; !last; {
		select {
		case <-w.changed:
		case <-w.quit:
			last = true
		}
		w.mu.Lock()
		status := w.status()
		same := equality.Semantic.DeepEqual(status, w.told)
		w.told = status
		w.mu.Unlock()
		if !same {
			w.r.cfg.Status(w.latest.Load(), *status.DeepCopy())
		}
	}
}

// statusChanged must be called without mu after each change of what status reads.
func (w *worker) statusChanged() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *worker) relabel(labels, annotations map[string]string) {
	pod := w.pod.DeepCopy()
	pod.Labels, pod.Annotations = maps.Clone(labels), maps.Clone(annotations)
	w.latest.Store(pod)
	w.refreshVolumes()
}
