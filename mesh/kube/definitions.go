package kube

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
)

// definitions follows the custom resource definitions of the mesh kinds, and starts and stops
// a follower for each. Only their metadata is watched, since the schemas of a cluster's
// definitions can be many megabytes; those that concern a mesh are then read one by one.
type definitions struct {
	source *Source
	wake   chan struct{}

	mu        sync.Mutex
	stale     map[string]bool // definitions to look at
	listed    bool
	followers map[string]*running // written by run only, with mu

	settled chan struct{} // closed when all that were there at the start have been looked at
}

type running struct {
	*follower
	version string
	stop    func() // waits until it has stopped
}

// recheck is how long to wait before a definition that could not be read is read again.
const recheck = time.Second

func newDefinitions(s *Source) *definitions {
	return &definitions{source: s, wake: make(chan struct{}, 1), stale: map[string]bool{}, settled: make(chan struct{}), followers: map[string]*running{}}
}

// Add implements cache.ReflectorStore, as do the following methods.
func (d *definitions) Add(o any) error    { return d.note(o) }
func (d *definitions) Update(o any) error { return d.note(o) }
func (d *definitions) Delete(o any) error { return d.note(o) }
func (d *definitions) Resync() error      { return nil }
func (d *definitions) Replace([]any, string) error {
	d.mu.Lock()
	for _, m := range meshKinds { // also those that are gone
		d.stale[m.definition()] = true
	}
	d.listed = true
	d.mu.Unlock()
	d.look()
	return nil
}

func (d *definitions) note(o any) error {
	n, err := nameOf(o)
	if err != nil {
		return err
	}
	if _, ours := meshKindOf(n.name); ours {
		d.mu.Lock()
		d.stale[n.name] = true
		d.mu.Unlock()
		d.look()
	}
	return nil
}

func (d *definitions) look() {
	select {
	case d.wake <- struct{}{}:
	default: // a look is already due
	}
}

func (d *definitions) run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		cache.NewReflectorWithOptions(d.source.server.listWatch(definitionKind), nil, d, cache.ReflectorOptions{
			Name:            "mesh/kube",
			TypeDescription: definitionKind.String(),
			Backoff:         &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 10 * time.Second},
		}).RunWithContext(ctx)
	})
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	settled := false
	for {
		select {
		case <-ctx.Done():
			for _, r := range d.followers {
				r.stop()
			}
			return
		case <-d.wake:
		case <-retry.C:
		}
		d.mu.Lock()
		names, listed := d.stale, d.listed
		d.stale = map[string]bool{}
		d.mu.Unlock()
		failed := false
		for n, answer := range d.ask(ctx, names) {
			if !d.check(ctx, answer) {
				failed = true
				d.mu.Lock()
				d.stale[n] = true
				d.mu.Unlock()
			}
		}
		if failed {
			retry.Reset(recheck)
		} else if listed && !settled {
			settled = true
			close(d.settled)
		}
	}
}

// answer is the version of a kind that is to be read, or why the API server did not tell.
type answer struct {
	meshKind
	version string
	err     error
}

// ask reads definitions, all at once: at the start there are many, and nobody is served before.
func (d *definitions) ask(ctx context.Context, names map[string]bool) map[string]answer {
	out := make(map[string]answer, len(names))
	var mu sync.Mutex
	var all sync.WaitGroup
	for n := range names {
		m, ok := meshKindOf(n)
		if !ok {
			continue
		}
		all.Go(func() {
			version, err := d.source.server.served(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			out[n] = answer{m, version, err}
		})
	}
	all.Wait()
	return out
}

// check brings the follower of a kind in line with its definition. It reports false when the API
// server did not tell.
func (d *definitions) check(ctx context.Context, m answer) bool {
	version, err := m.version, m.err
	if apierrors.IsNotFound(err) {
		version, err = "", nil
	}
	if err != nil {
		if ctx.Err() == nil {
			d.source.log.Warn("a custom resource definition cannot be read; trying again", "definition", m.definition(), "error", err)
		}
		return false
	}
	old := d.followers[m.name]
	if old != nil && old.version == version || old == nil && version == "" {
		return true
	}
	if old != nil {
		old.stop()
		d.mu.Lock()
		delete(d.followers, m.name)
		d.mu.Unlock()
		if version == "" {
			old.forget()
			d.source.log.Info("mesh kind removed", "definition", m.definition())
			return true
		}
	}
	k := kind{name: m.name, gvr: schema.GroupVersionResource{Group: m.group, Version: version, Resource: m.plural}, selected: true}
	var f *follower
	if old != nil { // another version of the same objects: what is in the mesh stays there meanwhile
		f = &follower{source: d.source, kind: k, sink: old.sink, listWatch: d.source.server.listWatch(k)}
	} else {
		f = d.source.newFollower(k)
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); f.run(run) }()
	d.mu.Lock()
	d.followers[m.name] = &running{follower: f, version: version, stop: func() { cancel(); <-done }}
	d.mu.Unlock()
	return true
}

// await waits until the kinds that exist at the start are in the store.
func (d *definitions) await(ctx context.Context) bool {
	select {
	case <-d.settled:
	case <-ctx.Done():
		return false
	}
	for {
		var wait *sink
		d.mu.Lock()
		for _, r := range d.followers {
			select {
			case <-r.sink.synced:
			default:
				wait = r.sink
			}
		}
		d.mu.Unlock()
		if wait == nil {
			return true
		}
		select {
		case <-wait.synced:
		case <-time.After(recheck): // its definition may have been removed
		case <-ctx.Done():
			return false
		}
	}
}
