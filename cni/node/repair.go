package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/redirect"
)

// Sandbox is the network of one running pod.
type Sandbox struct {
	ID                   string // the container runtime's; never used twice
	Namespace, Name, UID string // of the pod
	Redirect             string // the pod's annotation redirect.Annotation
	NetNS                string // path of the network namespace
}

// Sandboxes is the container runtime.
type Sandboxes interface {
	// Sandboxes lists the sandboxes that are ready (their network is complete: no plugin is at work in it any more), have a network
	// namespace of their own, and belong to pods with redirect.Annotation.
	Sandboxes(ctx context.Context) ([]Sandbox, error)

	// Ending says that a sandbox is gone or going, or that nothing runs in it any more: its network may be taken down at this moment. It is
	// asked after something about the rules was found wrong, so that the answer is younger than what was found.
	Ending(ctx context.Context, id string) (bool, error)
}

// Reasons of a repair.
const (
	ReasonStart = "start" // the rules were missing or wrong when the pod was first seen: its network was made without the plugin
	ReasonDrift = "drift" // the rules had been right: somebody changed them
)

// Repair is what was done for one pod.
type Repair struct {
	Sandbox
	Reason string
	Drift  []string // how the rules differed
	Took   time.Duration
	Err    error // the pod is not redirected
}

// Repairs puts the rules of running pods right, in their live network namespace. Connections that exist already stay as they are; new ones are
// captured. No pod is restarted, so it serves Jobs and pods that never restart just as well.
type Repairs struct {
	Sandboxes         Sandboxes
	Backend           redirect.Backend
	ExcludeNamespaces []string
	Gates             *Gates
	Told              func(Repair) // of each repair, and of a failure once until its text changes
	Log               *slog.Logger
	Metrics           *Metrics

	List   time.Duration // how often the runtime is asked; default 2 s
	Verify time.Duration // how often the rules of each pod are read back; default 30 s

	known   map[string]*watched // by sandbox ID
	changed chan string         // sandbox IDs whose rules somebody touched
	listErr string              // logged already
	passed  time.Time           // when the runtime's answer to the last pass was complete
}

// watched is a sandbox that has been looked at.
type watched struct {
	Sandbox
	ns     *os.File // its network namespace: a path may come to mean another one, this cannot. Nil until it could be opened
	right  bool     // its rules have been right once
	due    time.Time
	wait   time.Duration // before the next attempt, after failures
	failed string        // what Told was told
	quiet  func()        // ends listening to changes of its rules
}

// leave lets go of the sandbox, and of what keeps its network namespace alive.
func (w *watched) leave() {
	if w.ns != nil {
		w.quiet()
		w.ns.Close()
		w.ns = nil
	}
}

const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = time.Minute
	calm       = 20 * time.Millisecond // after somebody touched rules: they may not be done

	// rest is between two looks at the runtime's sandboxes that were asked for. Each listing is of all sandboxes of the node, and its time is that of the
	// pods which start on the same cores; but a pod without rules has only until its proxy is asked for the first time, some 150 ms.
	rest = 50 * time.Millisecond
)

// Run repairs until ctx ends. look asks for a look at the runtime's sandboxes, now or after a short rest; it may be nil.
func (r *Repairs) Run(ctx context.Context, look <-chan struct{}) {
	r.known, r.changed = map[string]*watched{}, make(chan string, 64)
	list := time.NewTicker(orElse(r.List, 2*time.Second))
	defer list.Stop()
	defer func() {
		for _, w := range r.known {
			w.leave()
		}
	}()
	var touched, soon <-chan time.Time
	for r.pass(ctx); ; {
		select {
		case <-ctx.Done():
			return
		case id := <-r.changed:
			if w := r.known[id]; w != nil {
				w.due = time.Now()
				touched = time.After(calm)
			}
			continue
		case <-touched:
			touched = nil
			r.due(ctx)
			continue
		case _, ok := <-look:
			if !ok {
				look = nil
			} else if soon == nil {
				soon = time.After(time.Until(r.passed.Add(rest))) // at once when that is over
			}
			continue
		case <-list.C:
		case <-soon:
		}
		soon = nil
		r.pass(ctx)
	}
}

// pass learns which sandboxes there are, and looks at those that are new or due.
func (r *Repairs) pass(ctx context.Context) {
	list, err := r.Sandboxes.Sandboxes(ctx)
	r.passed = time.Now()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		r.Metrics.listErrs.Inc()
		if r.listErr != err.Error() {
			r.listErr = err.Error()
			r.Log.Warn("cannot list the pods' sandboxes; those known are looked after", "error", err)
		}
		r.due(ctx)
		return
	}
	r.listErr = ""
	present := map[string]bool{}
	for _, s := range list {
		if slices.Contains(r.ExcludeNamespaces, s.Namespace) {
			continue
		}
		if present[s.ID] = true; r.known[s.ID] == nil {
			r.known[s.ID] = &watched{Sandbox: s}
		}
	}
	for id, w := range r.known {
		if !present[id] {
			w.leave()
			delete(r.known, id)
		}
	}
	r.Metrics.sandboxes.Set(float64(len(r.known)))
	r.due(ctx)
}

func (r *Repairs) due(ctx context.Context) {
	for _, w := range r.known {
		if ctx.Err() == nil && !time.Now().Before(w.due) {
			r.look(ctx, w)
		}
	}
}

// look verifies one pod's rules and puts them right.
//
// Rules that are gone may have been taken away by CNI DEL, because the pod ends; then there is nothing to repair and nothing to say. Runtimes end a
// sandbox's containers, and containerd the sandbox itself, before they call DEL: asked after the rules were seen to be wrong, they know. A pod
// that ends later than that gets its rules back in a namespace that is its own, and that nobody runs in.
func (r *Repairs) look(ctx context.Context, w *watched) {
	start := time.Now()
	spec, drift, err := r.inspect(w)
	if err != nil || len(drift) > 0 {
		if ending, unknown := r.Sandboxes.Ending(ctx, w.ID); ctx.Err() != nil || unknown == nil && ending {
			w.due = time.Now() // should it live after all, the next pass sees to it
			return
		}
	}
	if err == nil && len(drift) > 0 {
		err = redirect.In(w.ns, func() error { return r.repair(spec) })
		if err == nil && spec.Gate != 0 && !w.right {
			// It starts now, and no plugin has told of it.
			if err := r.Gates.Open(w.Sandbox, spec.Gate); err != nil {
				r.Log.Warn("the start of a pod is not watched over, and may take a second longer", "error", err)
			}
		}
	}
	done := Repair{Sandbox: w.Sandbox, Reason: ReasonStart, Drift: drift, Took: time.Since(start), Err: err}
	if w.right {
		done.Reason = ReasonDrift
	}
	if err != nil {
		r.failed(w, done)
		return
	}
	w.right, w.wait, w.failed = true, 0, ""
	w.due = time.Now().Add(orElse(r.Verify, 30*time.Second))
	if len(drift) > 0 {
		r.Metrics.repairs.WithLabelValues(done.Reason, "repaired").Inc()
		r.Metrics.repairTime.Observe(done.Took.Seconds())
		r.Told(done)
	}
}

// inspect says how the pod's rules differ from its Spec.
func (r *Repairs) inspect(w *watched) (spec redirect.Spec, drift []string, err error) {
	if spec, err = redirect.Decode(w.Redirect); err != nil {
		return spec, nil, fmt.Errorf("annotation %s: %w", redirect.Annotation, err)
	}
	if w.ns == nil {
		if w.ns, err = openNamespace(w.NetNS); err != nil {
			return spec, nil, err
		}
		w.quiet = r.listen(w) // before the rules are read: a change that comes after that is heard
	}
	err = redirect.In(w.ns, func() (err error) {
		if drift, err = r.Backend.Verify(spec); err != nil {
			err = fmt.Errorf("read the redirect rules: %w", err)
		}
		return err
	})
	return spec, drift, err
}

// repair runs inside the pod's network namespace.
func (r *Repairs) repair(spec redirect.Spec) error {
	if err := r.Backend.Apply(spec); err != nil {
		return fmt.Errorf("write the redirect rules: %w", err)
	}
	left, err := r.Backend.Verify(spec)
	if err == nil && len(left) > 0 {
		err = errors.New(strings.Join(left, "; "))
	}
	if err != nil {
		return fmt.Errorf("the redirect rules are not what was written: %w", err)
	}
	return nil
}

func (r *Repairs) failed(w *watched, done Repair) {
	w.wait = min(max(firstRetry, 2*w.wait), lastRetry)
	w.due = time.Now().Add(w.wait)
	r.Metrics.repairs.WithLabelValues(done.Reason, "failed").Inc()
	if text := done.Err.Error(); text != w.failed {
		w.failed = text
		r.Told(done)
	}
}

// openNamespace explains a mistake of deployment that the kernel would only call an invalid argument.
func openNamespace(path string) (*os.File, error) {
	if path == "" {
		return nil, errors.New("the container runtime's status of the sandbox names no network namespace")
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	const nsfs = 0x6e736673
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(ns.Fd()), &s); err != nil {
		return nil, errors.Join(&os.PathError{Op: "network namespace", Path: path, Err: err}, ns.Close())
	}
	if s.Type != nsfs {
		ns.Close()
		return nil, fmt.Errorf("%s is no network namespace here: mount the host's directory of it with mountPropagation HostToContainer", path)
	}
	return ns, nil
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}
