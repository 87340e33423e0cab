package xds

import (
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
	kicked chan struct{} // holds one: run shall look around

	newcomer atomic.Bool // has not got what it needs yet: see pace

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
	ended       error     // why nothing more is received
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
	// pending reports whether next might return one.
	pending() bool
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

// run writes what the proxy needs until the stream ends; receive, in another goroutine, takes in what it says. The error is a gRPC status.
func (s *session) run(first *request) error {
	s.mu.Lock()
	err := s.take(first)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.over(); err != nil {
		return err
	}
	go s.receive()
	// The timer is set to the nearest of all deadlines, and not put off when that moves: an early ring costs less.
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var rings time.Time
	for {
		if err := s.flush(); err != nil {
			return err
		}
		s.mu.Lock()
		next, grown := s.publication.next, s.grown
		var authority <-chan struct{}
		if s.wallet != nil {
			authority = s.server.authorityChanged()
		}
		deadline := s.deadline()
		s.mu.Unlock()
		if !deadline.IsZero() && (rings.IsZero() || deadline.Before(rings)) {
			rings = deadline
			timer.Reset(time.Until(deadline))
		}
		select {
		case <-s.kicked:
			if err := s.over(); err != nil {
				return err
			}
		case <-next:
			if err := s.push(); err != nil {
				return err
			}
		case <-grown:
			s.mu.Lock()
			s.adopt()
			s.mu.Unlock()
		case <-authority:
			s.certify()
		case <-timer.C:
			rings = time.Time{}
			if err := s.due(time.Now()); err != nil {
				return err
			}
		}
	}
}

// push follows the newest publication, when it is this stream's turn.
func (s *session) push() (err error) {
	if s.server.pushes == nil {
		return s.refresh()
	}
	s.server.pushes.talk(func() {
		if err = s.refresh(); err == nil {
			err = s.flush()
		}
	})
	return err
}

// kick makes run look around.
func (s *session) kick() {
	select {
	case s.kicked <- struct{}{}:
	default:
	}
}

// over says why the stream ends, if it does. Whoever ends it kicks.
func (s *session) over() error {
	select {
	case <-s.server.stopping:
		return errStopping
	case <-s.leave:
		return errStopping
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// deadline is when due has something to do.
func (s *session) deadline() (nearest time.Time) {
	for _, at := range [...]time.Time{s.login.expires, s.protocol.alarm(), s.renewal(), s.silence()} {
		if !at.IsZero() && (nearest.IsZero() || at.Before(nearest)) {
			nearest = at
		}
	}
	return nearest
}

// silence is when the proxy will have owed an answer for too long; zero when it owes none.
func (s *session) silence() time.Time {
	if since := s.protocol.waiting(); !since.IsZero() {
		return since.Add(s.server.config.AnswerTimeout)
	}
	return time.Time{}
}

// due does what is due now.
func (s *session) due(now time.Time) error {
	passed := func(at time.Time) bool { return !at.IsZero() && !now.Before(at) }
	s.mu.Lock()
	silent, renew := passed(s.silence()), passed(s.renewal())
	s.mu.Unlock()
	switch {
	case passed(s.login.expires):
		return status.Error(codes.Unauthenticated, "the token of this stream has expired; connect again with a fresh one")
	case silent:
		return s.server.cut(s, "answer", s.server.config.AnswerTimeout)
	case renew:
		s.certify()
	}
	return nil
}

// longRequest is the size in bytes from which reading a request is work that newcomers take turns at: a list of what one has or wants.
// Confirmations are shorter, and waiting for a turn would cost more than they do.
const longRequest = 1 << 10

// receive is the only reader of the stream. It ends with the stream. Most of what a proxy says is that it has taken
// what it was sent: then nobody else need be woken.
func (s *session) receive() {
	for {
		r := &request{delta: s.delta}
		err := s.stream.RecvMsg(r)
		if err == nil {
			if len(r.unread) < longRequest {
				err = s.hearken(r)
			} else {
				s.turns(s.server.computing).compute(func() { err = s.hearken(r) })
			}
		} else {
			s.mu.Lock()
			s.ended = err
			s.mu.Unlock()
			s.kick()
		}
		if err != nil {
			return
		}
	}
}

// hearken takes in one request.
func (s *session) hearken(r *request) error {
	err := r.read()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = s.take(r)
	}
	switch {
	case err != nil:
		s.ended = err
	case s.curious() || s.protocol.pending():
	default:
		s.settled()
		return nil
	}
	s.kick()
	return err
}

// take lets the protocol see a request. The session is locked.
func (s *session) take(r *request) error {
	t, ok := envoy.TypeOf(r.typeURL)
	if !ok {
		// A type from a newer Envoy: it hears nothing, as from any server that does not know it.
		s.server.metrics.unknownType()
		s.server.log.Debug("request for an unknown type", "proxy", s.name(), "type", r.typeURL)
		return nil
	}
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

// flush writes all that can be written now.
func (s *session) flush() (err error) {
	for more := true; more && err == nil; {
		more, err = s.step()
	}
	return err
}

// step writes one message, and reports whether there may be more.
func (s *session) step() (more bool, err error) {
	var f *frame
	s.turns(s.server.computing).compute(func() { f, more = s.next() })
	if f != nil {
		err = s.send(f)
	}
	return more, err
}

// next is what there is to write, if anything, and whether there may be more.
func (s *session) next() (f *frame, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.learn()
	f = s.protocol.next()
	more = f != nil || s.curious()
	if !more {
		s.settled()
	}
	return f, more
}

// send writes one message. Who watches ends the stream when the proxy does not
// read for too long; until then only this goroutine waits.
func (s *session) send(f *frame) error {
	begin := time.Now()
	s.login.watchdog.since.Store(begin.UnixNano())
	var err error
	s.turns(s.server.talking).talk(func() { err = s.stream.SendMsg(f) })
	s.login.watchdog.since.Store(0)
	s.server.metrics.sentResponse(f, time.Since(begin))
	return err
}

// settled notes that the proxy is up to date.
func (s *session) settled() {
	if s.newcomer.Load() && (s.protocol.status(envoy.Listener).Acked != "" || time.Since(s.opened) > newcomerTime) {
		s.newcomer.Store(false)
	}
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
	if s.wallet == nil {
		return time.Time{}
	}
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
		c.parts = segments(nil, c.updated)
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

// watchdog calls off a stream whose proxy does not read.
type watchdog struct {
	since atomic.Int64 // when the write began that is under way, in Unix nanoseconds; 0 when there is none
	bark  chan struct{}
	once  sync.Once
}

func newWatchdog() *watchdog { return &watchdog{bark: make(chan struct{})} }

// watch looks at all streams, now and then, until done is closed.
func (s *Server) watch(done <-chan struct{}) {
	tick := time.NewTicker(max(s.config.SendTimeout/8, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.mu.Lock()
			for _, ses := range s.sessions {
				w := ses.login.watchdog
				if since := w.since.Load(); since != 0 && now.UnixNano()-since > int64(s.config.SendTimeout) {
					w.once.Do(func() { close(w.bark) })
				}
			}
			s.mu.Unlock()
		case <-done:
			return
		}
	}
}

// errStopping tells proxies to connect again, which Envoy does by itself.
var errStopping = status.Error(codes.Unavailable, "this control plane is stopping; connect to another one")
