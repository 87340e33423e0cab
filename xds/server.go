package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
)

// Mesh is what the server hands out at one moment. Its methods are called from
// many goroutines.
type Mesh interface {
	// Workload returns a pod, or nil when it is not known.
	Workload(namespace, name string) *mesh.Workload
	// Sets returns what a proxy must have. Scopes that did not change since the
	// last Mesh are the same objects.
	Sets(envoy.Proxy) []*envoy.Set
	// OnDemand reports whether a pod's proxy is told what its workload asks for, and nothing else.
	OnDemand(*mesh.Workload) bool
	// Resolve finds what a proxy means by a name, among its Sets; nil when it is not there.
	Resolve(envoy.Proxy, envoy.Type, string) *envoy.Resource
	// Means says what a name is to a proxy, whether it has asked for it or not.
	Means(envoy.Proxy, envoy.Type, string) envoy.Meaning
}

// Config tells a Server what it needs from outside.
type Config struct {
	Verifier    *identity.Verifier  // nil: no token is accepted
	Authority   *identity.Authority // nil: no certificates are handed out
	TrustDomain string
	TTL         time.Duration // of workload certificates; 0 means 24 h
	// PodTimeout is how long a proxy waits for the news of its pod; 0 means 30 s.
	PodTimeout time.Duration
	// SendTimeout is how long a proxy may not read before its stream is cut; 0 means
	// 60 s. (Istio: PILOT_XDS_SEND_TIMEOUT)
	SendTimeout time.Duration
	// AnswerTimeout is how long a proxy may neither accept nor reject what it was sent;
	// 0 means 5 minutes. Envoy holds its answer back while clusters warm up, so this is no measure of load.
	AnswerTimeout time.Duration
	// Remember is called when proxies of a workload have asked for more than before, with all that they have asked for; nil when nobody
	// keeps a record. It must not block.
	Remember func(*envoy.Demand)
	// PushThrottle is how many proxies are told of a change at a time; 0 means as many as the processors can. (Istio: PILOT_PUSH_THROTTLE)
	PushThrottle int
	Log          *slog.Logger // nil means slog.Default()
}

// Server is the discovery service. Publish gives it what to serve.
type Server struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	changes *changes
	rejects *rejects
	demands *demands

	talking, computing pace // of newcomers, see newPaces
	pushes             pace // nil: no limit

	current  atomic.Pointer[publication]
	stopping chan struct{}
	stop     sync.Once

	greetDelta, greetWorld []byte // control_plane fields

	mu       sync.Mutex
	sessions map[uint64]*session
	last     uint64
	publish  sync.Mutex
}

// publication is a Mesh with the moment it took effect. next is closed when
// the following one is there.
type publication struct {
	mesh   Mesh
	number uint64
	since  time.Time
	next   chan struct{}
}

// NewServer makes a Server that has nothing to serve yet: proxies may connect and wait.
func NewServer(c Config) *Server {
	if c.TTL == 0 {
		c.TTL = 24 * time.Hour
	}
	if c.PodTimeout == 0 {
		c.PodTimeout = 30 * time.Second
	}
	if c.SendTimeout == 0 {
		c.SendTimeout = time.Minute
	}
	if c.AnswerTimeout == 0 {
		c.AnswerTimeout = 5 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{
		config:  c,
		log:     c.Log,
		changes: newChanges(),
		rejects: newRejects(),
		demands: newDemands(c.Remember),

		stopping: make(chan struct{}),
		sessions: make(map[uint64]*session),
	}
	s.talking, s.computing = newPaces()
	if c.PushThrottle > 0 {
		s.pushes = make(pace, c.PushThrottle)
	}
	s.metrics = newMetrics(s)
	s.current.Store(&publication{next: make(chan struct{})})
	s.greetDelta, s.greetWorld = greetings()
	return s
}

// greetings encodes the name of this replica as the control_plane field of both responses.
func greetings() (delta, world []byte) {
	host, _ := os.Hostname() // empty is fine: it is only shown
	cp := &core.ControlPlane{Identifier: "weftd " + host}
	// A message with one field set is that field, encoded.
	delta, err1 := proto.Marshal(&discovery.DeltaDiscoveryResponse{ControlPlane: cp})
	world, err2 := proto.Marshal(&discovery.DiscoveryResponse{ControlPlane: cp})
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil // a host name that is not UTF-8
	}
	return delta, world
}

// Publish makes m what proxies get from now on. since is when the first change
// that led to it was seen; convergence is measured from there.
func (s *Server) Publish(m Mesh, since time.Time) {
	s.publish.Lock()
	defer s.publish.Unlock()
	old := s.current.Load()
	s.changes.sweep()
	s.current.Store(&publication{mesh: m, number: old.number + 1, since: since, next: make(chan struct{})})
	close(old.next)
}

// Ready reports whether there is something to serve.
func (s *Server) Ready() bool { return s.current.Load().mesh != nil }

// Stop ends all streams, so that proxies connect elsewhere, or here when the
// server is back. Serve then returns.
func (s *Server) Stop() {
	s.stop.Do(func() {
		close(s.stopping)
		for _, ses := range s.connected() {
			ses.kick()
		}
	})
}

// Serve accepts proxies on l until ctx ends or Stop is called. tlsConfig is nil for plaintext.
// It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config) error {
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		// The largest request is the list of what a reconnecting proxy has: some 100 bytes a resource.
		grpc.MaxRecvMsgSize(16 << 20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if tlsConfig != nil {
		// A TLS connection has a buffer of its own for what was decrypted. A second one of 32 KB, the default, saves no system call and
		// was a quarter of what an idle proxy costs.
		options = append(options, grpc.Creds(pacedTLS{credentials.NewTLS(tlsConfig), s.talking}), grpc.ReadBufferSize(0))
	}
	g := grpc.NewServer(options...)
	g.RegisterService(&serviceDesc, s)
	if tlsConfig != nil && s.config.Authority != nil {
		registerSigner(g, s)
	}
	done := make(chan struct{})
	defer close(done)
	go s.watch(done)
	go func() {
		select {
		case <-ctx.Done():
			s.Stop()
		case <-s.stopping:
		case <-done:
			return
		}
		// The streams end by themselves now; who does not read is not waited for.
		timeout := time.AfterFunc(2*time.Second, g.Stop)
		g.GracefulStop()
		timeout.Stop()
	}()
	err := g.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

var serviceDesc = grpc.ServiceDesc{
	ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{
			StreamName:    "StreamAggregatedResources",
			Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(*Server).serve(stream, false) },
			ServerStreams: true,
			ClientStreams: true,
		},
		{
			StreamName:    "DeltaAggregatedResources",
			Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(*Server).serve(stream, true) },
			ServerStreams: true,
			ClientStreams: true,
		},
	},
	Metadata: "envoy/service/discovery/v3/ads.proto",
}

// serve handles one stream.
func (s *Server) serve(stream grpc.ServerStream, delta bool) error {
	ctx := stream.Context()
	var login *login
	var err error
	s.talking.talk(func() { login, err = s.authenticate(ctx) })
	if err != nil {
		s.log.Info("a stream was refused", "peer", peerName(ctx), "error", err)
		return err
	}
	first := &request{delta: delta}
	if err := stream.RecvMsg(first); err != nil {
		return err
	}
	if err := first.read(); err != nil {
		return err
	}
	if first.node == nil {
		return status.Error(codes.InvalidArgument, "the first request of a stream must name its node")
	}
	if err := login.claim(first.node); err != nil {
		return err
	}
	ses := &session{server: s, stream: stream, login: *login, node: first.node, delta: delta, leave: make(chan struct{}), kicked: make(chan struct{}, 1), opened: time.Now()}
	ses.proxy.Inline = !delta
	if ses.publication, err = s.await(ctx, login, first.node, &ses.proxy); err != nil {
		s.log.Info("a stream was refused", "proxy", login.name(), "peer", login.peer, "error", err)
		return err
	}
	// The answer is for the whole stream: a proxy that was told everything is not taken from, and one on demand goes on asking.
	if delta && ses.publication.mesh.OnDemand(ses.proxy.Workload) {
		ses.appetite = s.demands.enter(ses.proxy.Namespace + "/" + ses.proxy.ServiceAccount)
		defer s.demands.leave(ses.appetite)
		p := s.demands.current(ses.appetite)
		ses.proxy.Demand, ses.grown = p.Demand, p.grown
	}
	ses.newcomer.Store(true)
	ses.turns(s.computing).compute(func() { ses.sets = ses.publication.mesh.Sets(ses.proxy) })
	ses.arrange()
	if delta {
		ses.protocol = newDelta(ses)
	} else {
		ses.protocol = newWorld(ses)
	}
	s.enter(ses)
	defer s.leave(ses)
	s.log.Debug("proxy connected", "proxy", ses.name(), "peer", login.peer, "delta", delta)
	// SendMsg cannot be interrupted but by the end of the handler: so the work is done
	// in a goroutine of its own, and this one can give up on it.
	result := make(chan error, 1)
	go func() { result <- ses.run(first) }()
	select {
	case err = <-result:
	case <-login.watchdog.bark:
		err = s.cut(ses, "read", s.config.SendTimeout)
	}
	if errors.Is(err, io.EOF) {
		err = nil // the proxy closed its side
	}
	s.log.Debug("proxy disconnected", "proxy", ses.name(), "peer", login.peer, "reason", err)
	return err
}

func (s *Server) enter(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	ses.number = s.last
	s.sessions[ses.number] = ses
}

func (s *Server) leave(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, ses.number)
}

// connected returns the sessions, the oldest first.
func (s *Server) connected() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.sessions), func(a, b *session) int { return int(a.number) - int(b.number) })
}

func (s *Server) authorityChanged() <-chan struct{} { return s.config.Authority.Changed() }

// cut gives up on a proxy that does not read, or does not answer.
func (s *Server) cut(ses *session, what string, patience time.Duration) error {
	s.metrics.writeTimeout()
	err := status.Errorf(codes.DeadlineExceeded, "the proxy did not %s for %s", what, patience)
	s.log.Warn("a stream was cut", "proxy", ses.name(), "error", err)
	return err
}
