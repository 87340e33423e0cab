package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-mesh/weft/mesh"
)

// Config says what to read and where to put it. REST and Store are required.
type Config struct {
	REST          *rest.Config
	Store         *mesh.Store
	RootNamespace string       // of the MeshConfig; "istio-system"
	MeshConfigMap string       // its ConfigMap; "istio"
	Changing      func()       // called before each change of the store; may be nil
	Log           *slog.Logger // nil for slog.Default()
}

// Source keeps a store like the API server has it.
type Source struct {
	config Config
	server *connection
	log    *slog.Logger
	synced chan struct{}

	// mu makes changes of the selection and of objects one after the other, over all kinds.
	mu         sync.Mutex
	selection  *mesh.Selection
	namespaced []*sink // those whose objects the selection is about
	words      interner
}

// New prepares a Source; it does not connect yet.
func New(c Config) (*Source, error) {
	if c.REST == nil || c.Store == nil {
		return nil, errors.New("mesh/kube: Config.REST and Config.Store are required")
	}
	if c.RootNamespace == "" {
		c.RootNamespace = "istio-system"
	}
	if c.MeshConfigMap == "" {
		c.MeshConfigMap = "istio"
	}
	if c.Changing == nil {
		c.Changing = func() {}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	server, err := connect(c.REST)
	if err != nil {
		return nil, err
	}
	return &Source{config: c, server: server, log: c.Log, synced: make(chan struct{}), selection: mesh.NewSelection()}, nil
}

// Synced is closed when everything that the API server had at the start is in the store.
// Mesh kinds whose custom resource definitions are not installed have nothing.
func (s *Source) Synced() <-chan struct{} { return s.synced }

// Run follows the API server until ctx ends. While the API server is away the store
// stays as it is; afterwards it is brought up to date, deletions included.
func (s *Source) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(k kind) *follower {
		f := s.newFollower(k)
		running.Go(func() { f.run(ctx) })
		return f
	}

	// Which namespaces count is decided before anything else is read.
	first := []*follower{start(namespaces), start(meshConfig(s.config.RootNamespace, s.config.MeshConfigMap))}
	if !awaitAll(ctx, first) {
		return nil
	}
	crds := newDefinitions(s)
	running.Go(func() { crds.run(ctx) })
	builtin := []*follower{start(nodes), start(services), start(endpointSlices), start(pods)}
	if !awaitAll(ctx, builtin) || !crds.await(ctx) {
		return nil
	}
	secrets := newCredentials(s)
	running.Go(func() { secrets.run(ctx) })
	select {
	case <-secrets.settled:
	case <-ctx.Done():
		return nil
	}
	close(s.synced)
	<-ctx.Done()
	return nil
}

func awaitAll(ctx context.Context, fs []*follower) bool {
	for _, f := range fs {
		select {
		case <-f.sink.synced:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// follower lists and watches one kind.
type follower struct {
	source    *Source
	kind      kind
	sink      *sink
	listWatch *cache.ListWatch
}

func (s *Source) newFollower(k kind) *follower {
	sink := newSink(s, k)
	if k.selected {
		s.mu.Lock()
		s.namespaced = append(s.namespaced, sink)
		s.mu.Unlock()
	}
	return &follower{source: s, kind: k, sink: sink, listWatch: s.server.listWatch(k)}
}

// run ends with ctx. The sink may ask for a fresh list at any time.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		run, cancel := context.WithCancel(ctx)
		f.source.mu.Lock()
		f.sink.again = cancel
		f.source.mu.Unlock()
		reflector := cache.NewReflectorWithOptions(f.listWatch, nil, f.sink, cache.ReflectorOptions{
			Name:            "mesh/kube",
			TypeDescription: f.kind.String(),
			Backoff:         &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 10 * time.Second},
		})
		reflector.RunWithContext(run)
		cancel()
	}
}

// forget takes everything of the kind out of the mesh: its definition is gone.
func (f *follower) forget() {
	s := f.source
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.namespaced {
		if other == f.sink {
			s.namespaced = append(s.namespaced[:i], s.namespaced[i+1:]...)
			break
		}
	}
	f.sink.clear()
}
