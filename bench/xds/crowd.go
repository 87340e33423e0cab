package main

import (
	"crypto/x509"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

// proxies is the process of the proxies.
type proxies struct {
	*setup
	roots    *x509.CertPool // nil without TLS
	classes  []*class
	first, n int            // numbers of these proxies
	memories []memory       // by proxy
	arrivals []atomic.Int64 // by proxy: Unix nanoseconds of the first message since the mark

	bytes, messages, last atomic.Int64 // last: Unix nanoseconds of the newest message
	marks                 atomic.Int64
	touched               atomic.Int64 // proxies that got something since the mark
	ready                 atomic.Int64
	failed                chan error

	mu     sync.Mutex
	conns  []net.Conn
	hungUp bool
	again  bool // they were connected before
	ended  sync.WaitGroup
}

// class is what the proxies of a namespace have in common.
type class struct {
	endpoints, routes []byte // that they ask for, encoded
	learned           memory
	versions          [envoy.NumTypes][][]byte // that, encoded in several orders
}

// orders is in how many orders a class tells what it has: each Envoy has its own.
const orders = 16

// heard is what came since a mark.
type heard struct {
	Last            int64 // Unix nanoseconds
	Messages, Bytes int64
	Proxies         int64
	CPU             time.Duration // of all proxies, since the process began
	Arrivals        []int64       `json:",omitempty"` // Unix nanoseconds of the first message to each, if that was asked for
}

// crowd plays the proxies, or those that stay.
func crowd(path string, staying bool) error {
	s, err := readSetup(path)
	if err != nil {
		return err
	}
	p := &proxies{setup: s, n: s.Size.Sidecars, failed: make(chan error, 1)}
	if staying {
		p.first, p.n = s.Size.Sidecars, s.Size.Staying
	}
	p.memories, p.arrivals = make([]memory, p.n), make([]atomic.Int64, p.n)
	if s.Secure {
		p.roots = x509.NewCertPool()
		p.roots.AppendCertsFromPEM(s.Root)
	}
	for _, a := range s.Namespaces {
		c := &class{}
		for _, name := range a.Endpoints {
			c.endpoints = appendString(c.endpoints, 3, name)
		}
		for _, name := range a.Routes {
			c.routes = appendString(c.routes, 3, name)
		}
		p.classes = append(p.classes, c)
	}
	return answer(p.do)
}

func (p *proxies) do(verb string, args []string) (any, error) {
	switch verb {
	case "connect":
		p.connect()
		return p.until(5*time.Minute, func() bool { return p.ready.Load() == int64(p.n) })
	case "yield":
		if err := yield(); err != nil {
			return nil, err
		}
		return p.heard()
	case "disconnect":
		p.disconnect()
		return p.heard()
	case "mark":
		p.clear()
		return p.heard()
	case "heard":
		// All have got something. It is told when.
		h, err := p.until(time.Minute, func() bool { return p.touched.Load() == int64(p.n) })
		for i := range p.arrivals {
			h.Arrivals = append(h.Arrivals, p.arrivals[i].Load())
		}
		return h, err
	case "settle":
		// So many have got something, and then nothing came for a while.
		want, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("settle %s: %w", args[0], err)
		}
		since := time.Now()
		return p.until(2*time.Minute, func() bool {
			quiet := max(p.last.Load(), since.UnixNano())
			return p.touched.Load() >= want && time.Now().UnixNano()-quiet > int64(p.Size.Quiet)
		})
	}
	return nil, fmt.Errorf("unknown verb %q", verb)
}

func (p *proxies) connect() {
	p.clear()
	p.ready.Store(0)
	p.mu.Lock()
	p.conns, p.hungUp = nil, false
	p.mu.Unlock()
	for i := range p.n {
		p.ended.Go(func() {
			var err error
			if p.Bytes > 0 {
				err = p.bare(i)
			} else {
				err = p.proxy(p.first + i).connect(p.again)
			}
			p.mu.Lock()
			expected := p.hungUp
			p.mu.Unlock()
			if err != nil && !expected {
				select {
				case p.failed <- fmt.Errorf("proxy %d: %w", i, err):
				default:
				}
			}
		})
	}
}

// opened notes a connection; false: it is not wanted any more.
func (p *proxies) opened(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
	return !p.hungUp
}

func (p *proxies) disconnect() {
	p.mu.Lock()
	p.hungUp = true
	for _, c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.ended.Wait()
	p.again = true
	for _, c := range p.classes {
		for t, have := range c.learned {
			c.versions[t] = nil
			for range orders {
				c.versions[t] = append(c.versions[t], encodeVersions(have))
			}
		}
	}
}

func (p *proxies) clear() {
	p.bytes.Store(0)
	p.messages.Store(0)
	p.touched.Store(0)
	p.marks.Add(1)
}

func (p *proxies) heard() (heard, error) {
	u, err := used()
	return heard{Last: p.last.Load(), Messages: p.messages.Load(), Bytes: p.bytes.Load(), Proxies: p.touched.Load(), CPU: u.CPU}, err
}

func (p *proxies) until(patience time.Duration, done func() bool) (heard, error) {
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if done() {
			return p.heard()
		}
		select {
		case err := <-p.failed:
			return heard{}, err
		case <-deadline:
			return heard{}, fmt.Errorf("after %s %d of %d proxies are ready, and %d got something; %d messages",
				patience, p.ready.Load(), p.n, p.touched.Load(), p.messages.Load())
		case <-tick.C:
		}
	}
}

// count takes note of a message to a proxy. mark is the proxy's own.
func (p *proxies) count(size, proxy int, mark *int64) {
	now := time.Now().UnixNano()
	p.bytes.Add(int64(size))
	p.messages.Add(1)
	p.last.Store(now)
	if m := p.marks.Load(); *mark != m {
		*mark = m
		p.arrivals[proxy].Store(now)
		p.touched.Add(1)
	}
}

// bare is a connection without any protocol: what comes is read, and answered in answerSize bytes.
func (p *proxies) bare(proxy int) error {
	c, err := net.Dial("tcp", p.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	if !p.opened(c) {
		return nil
	}
	reply, want, total, mark := make([]byte, answerSize), p.Bytes, 0, int64(0)
	first := true
	return readAll(c, func(b []byte) error {
		total += len(b)
		if total < want {
			return nil
		}
		p.count(total, proxy, &mark)
		total, want = 0, 0 // from now on all that comes at once is one message
		if first {
			first = false
			p.ready.Add(1)
		}
		_, err := c.Write(reply)
		return err
	})
}
