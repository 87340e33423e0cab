package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Upstream resolves names outside the cluster. Nil means that there are none.
type Upstream func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)

// Server answers on UDP and TCP. It is safe for concurrent use.
type Server struct {
	Upstream Upstream
	zone     atomic.Pointer[Zone]
}

// Set replaces what the server answers.
func (s *Server) Set(z *Zone) { s.zone.Store(z) }

// Listen opens UDP and TCP sockets on every address (port included) and serves
// until the returned function is called. When one address cannot be had, none is kept.
func (s *Server) Listen(addrs ...netip.AddrPort) (stop func(), err error) {
	var servers []*dns.Server
	stop = func() {
		for _, srv := range servers {
			_ = srv.Shutdown() // only says "not started", which is what is wanted
		}
	}
	for _, a := range addrs {
		for _, network := range []string{"udp", "tcp"} {
			started := make(chan error, 1)
			srv := &dns.Server{Addr: a.String(), Net: network, Handler: s, NotifyStartedFunc: func() { started <- nil }}
			go func() {
				if err := srv.ListenAndServe(); err != nil {
					started <- err
				}
			}()
			if err := <-started; err != nil {
				stop()
				return nil, fmt.Errorf("DNS on %s/%s: %w", a, network, err)
			}
			servers = append(servers, srv)
		}
	}
	return stop, nil
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := s.Answer(q)
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m) // the client has gone; it will ask again
}

// Answer resolves one question.
func (s *Server) Answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(o.UDPSize(), false)
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	z := s.zone.Load()
	if z == nil {
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	name := strings.ToLower(q.Question[0].Name)
	if !z.owns(name) {
		return s.forward(z, q, m)
	}
	m.Authoritative = true
	s.chase(z, m, name, q.Question[0].Qtype, 0)
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{z.soa}
	}
	return m
}

// chase follows CNAMEs inside the zone and, through upstream, out of it.
func (s *Server) chase(z *Zone, m *dns.Msg, name string, qtype uint16, depth int) {
	answer, exists := z.lookup(name, qtype)
	if len(answer) == 0 {
		if !exists && depth == 0 {
			m.Rcode = dns.RcodeNameError
		}
		return
	}
	answer = append([]dns.RR(nil), answer...)
	rand.Shuffle(len(answer), func(i, j int) { answer[i], answer[j] = answer[j], answer[i] })
	m.Answer = append(m.Answer, answer...)
	cname, ok := answer[0].(*dns.CNAME)
	if !ok || qtype == dns.TypeCNAME || qtype == dns.TypeANY || depth > 8 {
		return
	}
	if z.owns(cname.Target) {
		s.chase(z, m, cname.Target, qtype, depth+1)
		return
	}
	out := new(dns.Msg)
	out.SetQuestion(cname.Target, qtype)
	if r := s.forward(z, out, new(dns.Msg).SetReply(out)); r.Rcode == dns.RcodeSuccess {
		m.Answer = append(m.Answer, r.Answer...)
	}
}

func (s *Server) forward(z *Zone, q, m *dns.Msg) *dns.Msg {
	if s.Upstream == nil {
		// At once, not after a timeout: to the sandbox such a name does not exist.
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{z.soa}
		return m
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := s.Upstream(ctx, q)
	if err != nil {
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	r.Id = q.Id
	return r
}

// ErrNoUpstream says that the host has no name server that answers.
var ErrNoUpstream = errors.New("no name server of this host answers")
