package xds

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
)

// session is one stream of one proxy.
type session struct {
	server *Server
	stream grpc.ServerStream
	login  login
	number uint64
	opened time.Time
	node   *node
	delta  bool
	leave  chan struct{} // closed when the proxy shall connect elsewhere

	mu          sync.Mutex // guards what follows; never held while writing
	proxy       envoy.Proxy
	appetite    *appetite // nil: the proxy is told everything
	grown       <-chan struct{}
	heard       [envoy.NumTypes][]string // names that the workload's Demand may lack
	had         []string                 // virtual hosts that the proxy has from an earlier stream
	publication *publication
	sets        []*envoy.Set
	wallet      *wallet
	withSecrets []*envoy.Set // sets and the credentials
	protocol    protocol
	nonce       uint64
	greeted     bool
	changed     time.Time // of the oldest change that the proxy has not confirmed; zero when it is up to date

	retrySVID time.Time
}

// protocol is one of the two ways to talk to a proxy. Its methods are called with
// the session's mutex held.
type protocol interface {
	// request takes in a message; an error ends the stream.
	request(t envoy.Type, r *request) error
	// learned is called when what was asked for is known.
	learned()
	// next returns the next message to write, nil when there is none for now.
	next() *frame
	// waiting is since when the proxy owes an answer; zero when it owes none.
	waiting() time.Time
	// alarm is when next has something to do though nothing happens; zero for never.
	alarm() time.Time
	// status describes one type.
	status(t envoy.Type) typeStatus
}

// typeStatus is what debug pages show of one type on one stream.
type typeStatus struct {
	Asked    bool
	Sent     string // nonce of the last response
	Acked    string
	InFlight bool
	Names    []string // explicit subscriptions; nil for a wildcard
	Refused  map[string]refusal
}

// run serves the stream until it ends. The error is a gRPC status.
func (s *session) run(ctx context.Context, first *request) error {
	requests := make(chan *request, 4)
	broken := make(chan error, 1)
	go s.receive(requests, broken)

	expiry := timerAt(s.login.expires)
	defer expiry.Stop()
	renew := timerAt(time.Time{})
	defer renew.Stop()
	silent := timerAt(time.Time{})
	defer silent.Stop()
	alarm := timerAt(time.Time{})
	defer alarm.Stop()

	if err := s.take(first); err != nil {
		return err
	}
	for {
		if err := s.flush(requests); err != nil {
			return err
		}
		s.mu.Lock()
		next, grown := s.publication.next, s.grown
		var authority <-chan struct{}
		if s.wallet != nil {
			authority = s.server.authorityChanged()
			resetAt(renew, s.renewal())
		}
		waiting := s.protocol.waiting()
		if !waiting.IsZero() {
			waiting = waiting.Add(s.server.config.AnswerTimeout)
		}
		resetAt(silent, waiting)
		resetAt(alarm, s.protocol.alarm())
		s.mu.Unlock()
		select {
		case r := <-requests:
			if err := s.take(r); err != nil {
				return err
			}
		case <-next:
			if err := s.refresh(); err != nil {
				return err
			}
		case <-grown:
			s.mu.Lock()
			s.adopt()
			s.mu.Unlock()
		case <-alarm.C:
		case <-authority:
			s.certify()
		case <-renew.C:
			s.certify()
		case <-expiry.C:
			return status.Error(codes.Unauthenticated, "the token of this stream has expired; connect again with a fresh one")
		case <-silent.C:
			return s.server.cut(s, "answer", s.server.config.AnswerTimeout)
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-s.leave:
			return errStopping
		case <-s.server.stopping:
			return errStopping
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// receive is the only reader of the stream. It ends with the stream.
func (s *session) receive(requests chan<- *request, broken chan<- error) {
	for {
		r := &request{delta: s.delta}
		if err := s.stream.RecvMsg(r); err != nil {
			broken <- err
			return
		}
		select {
		case requests <- r:
		case <-s.stream.Context().Done():
			return
		}
	}
}

// take lets the protocol see a request.
func (s *session) take(r *request) error {
	t, ok := envoy.TypeOf(r.typeURL)
	if !ok {
		// A type from a newer Envoy: it hears nothing, as from any server that does not know it.
		s.server.metrics.unknownType()
		s.server.log.Debug("request for an unknown type", "proxy", s.name(), "type", r.typeURL)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t == envoy.Secret && s.login.secrets {
		if s.wallet == nil {
			s.wallet = newWallet(s.server.config.Authority, s.login.id, s.server.config.TTL, r.initial[svidName], time.Now())
		}
		if slices.Contains(r.subscribe, svidName) && find(s.wallet.set.Resources[envoy.Secret], svidName) == nil {
			s.issue()
		}
		s.arrange()
	}
	return s.protocol.request(t, r)
}

// flush writes all that can be written now. Requests that already arrived are
// looked at first: together they say more than one by one.
func (s *session) flush(requests <-chan *request) error {
	for {
		select {
		case r := <-requests:
			if err := s.take(r); err != nil {
				return err
			}
			continue
		default:
		}
		s.mu.Lock()
		s.learn()
		f := s.protocol.next()
		more := s.curious()
		if f == nil && !more {
			s.settled()
		}
		s.mu.Unlock()
		if f == nil {
			if more {
				continue
			}
			return nil
		}
		if err := s.send(f); err != nil {
			return err
		}
	}
}

// send writes one message. The watchdog ends the stream when the proxy does not
// read for too long; until then only this goroutine waits.
func (s *session) send(f *frame) error {
	begin := time.Now()
	s.login.watchdog.Reset(s.server.config.SendTimeout)
	err := s.stream.SendMsg(f)
	s.login.watchdog.Stop()
	s.server.metrics.sentResponse(f, time.Since(begin))
	return err
}

// settled notes that the proxy is up to date.
func (s *session) settled() {
	if !s.changed.IsZero() && s.protocol.waiting().IsZero() {
		s.server.metrics.converged(time.Since(s.changed))
		s.changed = time.Time{}
	}
}

// refresh follows the newest publication. It fails when the pod is gone.
func (s *session) refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.server.current.Load()
	s.publication = p
	if err := s.login.identify(p.mesh, s.node, &s.proxy); err != nil {
		return err
	}
	s.follow(p.since)
	return nil
}

// follow takes what the proxy must have now. since is when the reason for it came.
func (s *session) follow(since time.Time) {
	sets := s.publication.mesh.Sets(s.proxy)
	if slices.Equal(sets, s.sets) {
		return
	}
	s.sets = sets
	s.arrange()
	s.server.metrics.waited(time.Since(since))
	if s.changed.IsZero() {
		s.changed = since
	}
}

// arrange puts the proxy's own secrets beside what it shares with others.
func (s *session) arrange() {
	s.withSecrets = s.sets
	if !s.login.secrets {
		s.withSecrets = withoutKeys(s.sets)
	}
	if s.wallet != nil {
		s.withSecrets = append(slices.Clip(s.sets), s.wallet.set)
	}
}

// wanted returns the Sets that hold resources of a type.
func (s *session) wanted(t envoy.Type) []*envoy.Set {
	if t == envoy.Secret {
		return s.withSecrets
	}
	return s.sets
}

// certify renews the certificate when it is time, and follows the roots.
func (s *session) certify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wallet == nil {
		return
	}
	if s.wallet.refresh(time.Now()) || !time.Now().Before(s.renewal()) {
		s.issue()
	}
	s.arrange()
}

// renewal is when certify is next due; zero for never.
func (s *session) renewal() time.Time {
	if !s.retrySVID.IsZero() {
		return s.retrySVID
	}
	return s.wallet.renewAt
}

// issue makes a certificate, or arranges for another try.
func (s *session) issue() {
	s.retrySVID = time.Time{}
	if err := s.wallet.issue(); err != nil {
		s.server.metrics.signingFailed()
		s.server.log.Error("no certificate for a workload", "proxy", s.name(), "id", s.login.id.String(), "error", err)
		s.retrySVID = time.Now().Add(signingRetry)
		return
	}
	s.server.metrics.signed()
}

// signingRetry is the pause after a certificate could not be signed.
const signingRetry = 10 * time.Second

// materialize makes sure that secrets which must be sent have bytes.
func (s *session) materialize(t envoy.Type, forced map[string]struct{}) {
	if t != envoy.Secret || s.wallet == nil || !s.wallet.kept {
		return
	}
	if _, ok := forced[svidName]; ok {
		s.issue()
		s.arrange()
	}
}

// change returns a step of one scope, computed once for all streams where it can be shared.
func (s *session) change(st step, t envoy.Type, with bool) *change {
	if isPrivate(st.from) || isPrivate(st.to) {
		c := new(change)
		c.compute(changeKey{st.from, st.to, t, with})
		return c
	}
	return s.server.changes.get(changeKey{st.from, st.to, t, with})
}

func (s *session) verdicts(t envoy.Type, lists [][]*envoy.Resource) map[*envoy.Resource]verdict {
	return s.server.rejects.of(t, s.node.version, s.login.key(), lists)
}

func (s *session) accepted(t envoy.Type, r *response) {
	if s.server.rejects.count.Load() == 0 {
		return
	}
	for _, l := range r.lists {
		for _, res := range l {
			s.server.rejects.accept(suspectKey{t, res.Name, res.Version, s.node.version})
		}
	}
}

func (s *session) refused(t envoy.Type, res, good *envoy.Resource, message string) {
	k := suspectKey{t, res.Name, res.Version, s.node.version}
	if s.server.rejects.refuse(k, s.login.key(), s.name(), message, res.Causes, good, time.Now()) {
		causes := make([]string, len(res.Causes))
		for i, c := range res.Causes {
			causes[i] = c.String()
		}
		s.server.log.Warn("proxy rejected configuration and keeps what it had", "proxy", s.name(), "type", shortName(t),
			"resource", res.Name, "version", res.Version, "causes", causes, "error", message)
	}
}

// nextNonce: nonces need only be unique in one stream.
func (s *session) nextNonce() string {
	s.nonce++
	return formatNonce(s.nonce)
}

// greeting names this server in the first response of a stream.
func (s *session) greeting(b []byte, delta bool) []byte {
	if s.greeted {
		return b
	}
	s.greeted = true
	if delta {
		return append(b, s.server.greetDelta...)
	}
	return append(b, s.server.greetWorld...)
}

// name is Istio's proxy ID: "pod.namespace".
func (s *session) name() string { return s.login.name() }

func (s *session) connection() string { return s.name() + "-" + strconv.FormatUint(s.number, 10) }

func isPrivate(set *envoy.Set) bool {
	return set != nil && len(set.Scope) >= len(private) && set.Scope[:len(private)] == private
}

// timerAt fires at a moment; never at the zero one.
func timerAt(at time.Time) *time.Timer {
	t := time.NewTimer(time.Hour)
	resetAt(t, at)
	return t
}

func resetAt(t *time.Timer, at time.Time) {
	if at.IsZero() {
		t.Stop()
		return
	}
	t.Reset(time.Until(at))
}

// watchdog calls off a stream whose proxy does not read.
type watchdog struct {
	timer *time.Timer
	bark  chan struct{}
	once  atomic.Bool
}

func newWatchdog() *watchdog {
	w := &watchdog{bark: make(chan struct{})}
	w.timer = time.AfterFunc(time.Hour, func() {
		if w.once.CompareAndSwap(false, true) {
			close(w.bark)
		}
	})
	w.timer.Stop()
	return w
}

func (w *watchdog) Reset(d time.Duration) { w.timer.Reset(d) }
func (w *watchdog) Stop()                 { w.timer.Stop() }

// errStopping tells proxies to connect again, which Envoy does by itself.
var errStopping = status.Error(codes.Unavailable, "this control plane is stopping; connect to another one")
