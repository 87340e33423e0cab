package xds

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

// What apps ask for is as hostile as any input. These bounds are per workload; together with those in subscribe.go they make the memory
// that one pod can take finite: a Demand is at most maxDemand names of at most maxName bytes, 4 MB in the worst case that an attacker can
// build and some KB in any other.
const (
	// maxName is above the longest that means something: a route configuration's name, a DNS name of 253 bytes and a port.
	maxName = 512
	// maxStrangers is how many names that nobody has get a virtual host of their own. An app that goes through more of them is a crawler: the
	// sidecars of its workload get the whole route table, with what takes all names, and ask no more. The mesh bounds that.
	maxStrangers = 256
	// maxDemand is above the hosts of the largest mesh that one workload could use.
	maxDemand = 1 << 13
	// keepIdle is how many names are kept for workloads that have no stream here, all together. Their proxies would tell them when they
	// come back; new pods would have to ask anew.
	keepIdle = 1 << 18
)

// demands holds what each workload has asked for.
type demands struct {
	remember func(*envoy.Demand)

	mu        sync.Mutex
	workloads map[string]*appetite
	idle      int // names of workloads without streams
}

// appetite is what one workload has asked for, shared by the streams of its replicas.
type appetite struct {
	latest  portion // guarded by demands.mu
	streams int     // the same
	left    time.Time

	mu        sync.Mutex // guards what follows
	strangers int        // among the names of latest, as of counted
	counted   *publication
	refused   uint64
	scanned   bool // said so in the log
}

// portion is a Demand, and a channel that is closed when there is a larger one.
type portion struct {
	*envoy.Demand
	grown chan struct{}
}

func newDemands(remember func(*envoy.Demand)) *demands {
	return &demands{remember: remember, workloads: make(map[string]*appetite)}
}

// enter begins a stream of a workload.
func (d *demands) enter(workload string) *appetite {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.at(workload)
	if a.streams++; a.streams == 1 {
		d.idle -= a.latest.Len()
	}
	return a
}

// leave ends one.
func (d *demands) leave(a *appetite) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.streams--; a.streams > 0 {
		return
	}
	if a.latest.Len() == 0 {
		delete(d.workloads, a.latest.Workload)
		return
	}
	a.left = time.Now()
	d.idle += a.latest.Len()
	d.tidy()
}

func (d *demands) at(workload string) *appetite {
	a := d.workloads[workload]
	if a == nil {
		a = &appetite{latest: portion{&envoy.Demand{Workload: workload}, make(chan struct{})}}
		d.workloads[workload] = a
	}
	return a
}

// tidy forgets what was idle longest, when that is too much.
func (d *demands) tidy() {
	for d.idle > keepIdle {
		var oldest *appetite
		for _, a := range d.workloads {
			if a.streams == 0 && a.latest.Len() > 0 && (oldest == nil || a.left.Before(oldest.left)) {
				oldest = a
			}
		}
		d.idle -= oldest.latest.Len()
		delete(d.workloads, oldest.latest.Workload)
	}
}

// current returns what the workload has asked for so far.
func (d *demands) current(a *appetite) portion {
	d.mu.Lock()
	defer d.mu.Unlock()
	return a.latest
}

// grow adds names, and wakes the workload's streams. It reports whether any was new.
func (d *demands) grow(a *appetite, t envoy.Type, names []string) bool {
	d.mu.Lock()
	larger := a.latest.With(t, names...)
	grew := d.replace(a, larger)
	d.mu.Unlock()
	if grew && d.remember != nil {
		d.remember(larger)
	}
	return grew
}

func (d *demands) replace(a *appetite, larger *envoy.Demand) bool {
	if larger == a.latest.Demand {
		return false
	}
	if a.streams == 0 {
		d.idle += larger.Len() - a.latest.Len()
		d.tidy()
	}
	close(a.latest.grown)
	a.latest = portion{larger, make(chan struct{})}
	return true
}

// learn adds what a record or another replica knows.
func (d *demands) learn(o *envoy.Demand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.at(o.Workload)
	larger := a.latest.Demand
	for t, names := range o.Names {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return len(n) > maxName })
		if room := maxDemand - larger.Len(); len(names) > room {
			names = names[:max(room, 0)]
		}
		larger = larger.With(envoy.Type(t), names...)
	}
	if a.streams == 0 && a.left.IsZero() {
		a.left = time.Now()
	}
	d.replace(a, larger)
}

// all returns every Demand, by workload.
func (d *demands) all() (list []*envoy.Demand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.workloads {
		if a.latest.Len() > 0 {
			list = append(list, a.latest.Demand)
		}
	}
	slices.SortFunc(list, func(a, b *envoy.Demand) int { return strings.Compare(a.Workload, b.Workload) })
	return list
}

// list describes all workloads.
func (d *demands) list() (list []hunger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, a := range d.workloads {
		a.mu.Lock()
		list = append(list, hunger{name, a.streams, a.latest.Names[envoy.VirtualHost], a.latest.Names[envoy.Cluster], a.refused})
		a.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b hunger) int { return strings.Compare(a.Workload, b.Workload) })
	return list
}

// forget drops a workload that has no stream.
func (d *demands) forget(workload string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.workloads[workload]; a != nil && a.streams == 0 {
		d.idle -= a.latest.Len()
		delete(d.workloads, workload)
	}
}

// Learn adds to what is known of a workload, from a record or from another replica; the streams of that workload, and of no other, follow
// at once. It may be called at any time, also before the first Publish. Config.Remember is not called for it.
func (s *Server) Learn(d *envoy.Demand) { s.demands.learn(d) }

// Forget drops what a workload has asked for, when it has no stream here.
func (s *Server) Forget(workload string) { s.demands.forget(workload) }

// Demands returns what each workload has asked for, by name of the workload; those that have asked for nothing are left out.
func (s *Server) Demands() []*envoy.Demand { return s.demands.all() }

// hear notes names that the proxy asks for, or has. learn looks at them.
func (s *session) hear(t envoy.Type, names ...string) {
	if s.appetite == nil {
		return
	}
	for _, name := range names {
		if len(name) <= maxName {
			s.heard[t] = append(s.heard[t], strings.Clone(name))
		} else {
			s.turnAway(1)
		}
	}
}

// learn lets the workload's Demand grow by what was heard. Names that say nothing new cost a look-up each, so it is done in
// portions: of a thousand forms of one host the first portion makes the rest superfluous.
func (s *session) learn() {
	if !s.curious() {
		return
	}
	for t, names := range s.heard {
		s.digest(envoy.Type(t), names)
	}
	// What the proxy has under the names of the resources comes last: most of it was asked for, by other names.
	s.digest(envoy.VirtualHost, s.had)
	clear(s.heard[:])
	s.had = nil
	s.protocol.learned()
}

func (s *session) digest(t envoy.Type, names []string) {
	slices.Sort(names)
	names = slices.Compact(names)
	for size := 64; len(names) > 0; size *= 2 {
		s.adopt()
		var fresh []string
		fresh, names = s.sift(t, names, size)
		if s.server.demands.grow(s.appetite, t, fresh) {
			s.server.metrics.learned(len(fresh))
			s.adopt()
		}
	}
}

// curious reports whether names were heard that nobody has looked at.
func (s *session) curious() bool {
	return len(s.had) > 0 || slices.ContainsFunc(s.heard[:], func(names []string) bool { return len(names) > 0 })
}

// sift takes names until it has found enough that the Demand should hold and does not.
func (s *session) sift(t envoy.Type, names []string, enough int) (fresh, rest []string) {
	m, total := s.publication.mesh, s.proxy.Demand.Len()
	for len(names) > 0 && len(fresh) < enough {
		name := names[0]
		names = names[1:]
		if s.proxy.Demand.Has(t, name) || lookup(s.sets, t, name) != nil || m.Resolve(s.proxy, t, name) != nil {
			continue
		}
		whole := tableOf(name) + everything
		switch meaning := m.Means(s.proxy, t, name); {
		case meaning == envoy.Nonsense:
			s.turnAway(1)
		case total+len(fresh) < maxDemand && (meaning == envoy.Known || s.admit()):
			fresh = append(fresh, name)
		case t != envoy.VirtualHost:
			s.turnAway(1)
		case !slices.Contains(fresh, whole):
			fresh = append(fresh, whole)
			s.server.metrics.widened()
			s.server.log.Warn("an app asks for more names than are told one by one; the sidecars of its workload get the whole table from now on",
				"workload", s.proxy.Demand.Workload, "proxy", s.name(), "table", tableOf(name), "limit", maxStrangers)
		}
	}
	return fresh, names
}

// everything, in place of an authority, asks for a whole table.
const everything = "/*"

// admit reports whether the workload may have one more stranger, and counts it.
func (s *session) admit() bool {
	a := s.appetite
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counted != s.publication {
		// Some who were strangers may be known by now.
		a.strangers, a.counted = 0, s.publication
		for t, names := range s.proxy.Demand.Names {
			for _, name := range names {
				if s.publication.mesh.Means(s.proxy, envoy.Type(t), name) == envoy.Stranger {
					a.strangers++
				}
			}
		}
	}
	if a.strangers >= maxStrangers {
		return false
	}
	a.strangers++
	return true
}

// turnAway counts names that get no place in the Demand. Each is answered all the same.
func (s *session) turnAway(n int) {
	s.server.metrics.turnedAway(n)
	a := s.appetite
	a.mu.Lock()
	a.refused += uint64(n)
	said := a.scanned
	a.scanned = true
	a.mu.Unlock()
	if !said {
		s.server.log.Warn("an app asks for what is no name, or for too many clusters that do not exist; it is answered 404. This is said once per workload",
			"workload", s.proxy.Demand.Workload, "proxy", s.name())
	}
}

// adopt follows the workload's Demand.
func (s *session) adopt() {
	p := s.server.demands.current(s.appetite)
	s.grown = p.grown
	if p.Demand == s.proxy.Demand {
		return
	}
	s.proxy.Demand = p.Demand
	s.follow(time.Now())
}
