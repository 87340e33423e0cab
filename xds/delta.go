package xds

import (
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/weft-mesh/weft/envoy"
)

// delta speaks the incremental protocol on one stream. It is guarded by the
// session's mutex and never writes: next returns what to write.
//
// The state of a type is a cursor, the Sets that the proxy has, and not a map of
// names and versions: a thousand streams in one scope then cost a thousand pointers.
type delta struct {
	s     *session
	types [envoy.NumTypes]deltaType
	// clusters are the steps of clusters that were sent and whose endpoints must follow.
	clusters []step
}

type deltaType struct {
	asked    bool
	wildcard bool                // subscribed to whatever there is
	all      bool                // endpoints: subscribed to each one that there is, by name
	names    map[string]struct{} // other subscriptions

	have     []*envoy.Set      // cursor
	known    map[string]string // before the first response: what the proxy says it has
	first    bool              // the first request was not dealt with yet
	forced   map[string]struct{}
	absent   map[string]struct{} // asked for, and not there: to be said at once
	gone     map[string]struct{} // to be removed when nothing refers to it any more
	groups   []group             // parts of a rejected response, to be sent on their own
	inflight *response
	refused  map[string]refusal

	sent, acked string // nonces
}

// group is a part of a response that was rejected as a whole.
type group struct {
	resources []*envoy.Resource
	previous  []*envoy.Set
}

// refusal is a resource that this proxy does not accept at this version.
type refusal struct {
	version string
	message string
}

// response is what was sent and not yet answered.
type response struct {
	typ      envoy.Type
	nonce    string
	lists    [][]*envoy.Resource
	removed  []string
	previous []*envoy.Set // what the proxy had before
	at       time.Time
}

func (r *response) count() (n int) {
	for _, l := range r.lists {
		n += len(l)
	}
	return n
}

// request takes in one message of the proxy.
func (d *delta) request(t envoy.Type, r *request) {
	ty := &d.types[t]
	if !ty.asked {
		// A first request that answers something is a left-over of another server's stream: only its names count.
		ty.asked, ty.first, ty.known = true, true, r.initial
		ty.wildcard = wildcardType(t) && len(r.subscribe) == 0
		if t == envoy.Endpoints && !d.types[envoy.Cluster].asked {
			// Envoy asks for clusters first, unless one that it was sent on its last stream is still warming: it waits to be sent
			// its endpoints, also those that Envoy knows. Until then Envoy neither asks for clusters nor confirms any.
			ty.known = nil
		}
	} else if r.nonce != "" && ty.inflight != nil && r.nonce == ty.inflight.nonce {
		d.answer(t, r)
	}
	d.subscribe(t, r.subscribe)
	d.unsubscribe(t, r.unsubscribe)
}

// wildcardType: an empty first subscription means "everything" for these only (xDS
// protocol: "How the client specifies what resources to return").
func wildcardType(t envoy.Type) bool { return t == envoy.Cluster || t == envoy.Listener }

// answer handles an ACK or NACK of the response in flight.
func (d *delta) answer(t envoy.Type, r *request) {
	ty := &d.types[t]
	resp := ty.inflight
	ty.inflight = nil
	if !r.failed {
		ty.acked = resp.nonce
		d.s.accepted(t, resp)
		return
	}
	d.s.server.metrics.rejected(t)
	list := slices.Concat(resp.lists...)
	switch len(list) {
	case 0:
		d.s.server.log.Warn("proxy rejected a removal", "proxy", d.s.name(), "type", shortName(t), "error", r.failure)
	case 1:
		d.refuse(t, list[0], resp.previous, r.failure)
	default:
		// Who is guilty is only known when it stands alone: Envoy's message may name
		// others by the way, or nobody at all.
		guilty, rest := named(list, r.failure)
		if len(guilty) == 0 {
			guilty, rest = nil, nil
			half := len(list) / 2
			ty.groups = append(ty.groups, group{list[:half:half], resp.previous}, group{list[half:], resp.previous})
		}
		if len(rest) > 0 {
			ty.groups = append(ty.groups, group{rest, resp.previous})
		}
		for _, g := range guilty {
			ty.groups = append(ty.groups, group{[]*envoy.Resource{g}, resp.previous})
		}
	}
}

// refuse records that the proxy does not take this resource. It is not sent again
// until it changes; the proxy keeps what it had.
func (d *delta) refuse(t envoy.Type, res *envoy.Resource, previous []*envoy.Set, message string) {
	ty := &d.types[t]
	if ty.refused == nil {
		ty.refused = make(map[string]refusal)
	}
	ty.refused[res.Name] = refusal{res.Version, message}
	good := lookup(previous, t, res.Name)
	if good != nil && good.Version == res.Version {
		good = nil
	}
	d.s.refused(t, res, good, message)
}

// next returns the next message to write, or nil when there is nothing to say
// now. The order is make before break: clusters, endpoints, listeners, routes; what
// is gone is removed when the proxy has confirmed all of that.
func (d *delta) next() *frame {
	held := false // something that others may refer to cannot be sent yet
	for t := range envoy.NumTypes {
		ty := &d.types[t]
		if !ty.asked || !d.due(t) {
			continue
		}
		if ty.inflight != nil {
			held = true
			continue
		}
		// Endpoints and secrets break nothing, and warming clusters wait for them.
		if held && (t == envoy.Listener || t == envoy.Route) {
			continue
		}
		if f := d.send(t); f != nil {
			return f
		}
	}
	if held || !d.waiting().IsZero() {
		return nil
	}
	for _, t := range [...]envoy.Type{envoy.Listener, envoy.Route, envoy.Cluster, envoy.Endpoints, envoy.Secret} {
		if f := d.remove(t); f != nil {
			return f
		}
	}
	return nil
}

// due reports whether there is something to send of a type, leaving removals
// aside. Steps in which this type did not change are made on the way.
func (d *delta) due(t envoy.Type) bool {
	ty := &d.types[t]
	if ty.first || len(ty.forced) > 0 || len(ty.absent) > 0 || len(ty.groups) > 0 {
		return true
	}
	if t == envoy.Endpoints && len(d.clusters) > 0 {
		return true
	}
	want := d.s.wanted(t)
	if slices.Equal(ty.have, want) {
		return false
	}
	var removed []string
	for _, st := range steps(ty.have, want) {
		c := d.s.change(st, t, false)
		if len(c.updated) > 0 {
			return true
		}
		removed = append(removed, c.removed...)
	}
	d.lost(t, removed, want)
	ty.have = want
	return false
}

// lost notes what the proxy has and should not have any more.
func (d *delta) lost(t envoy.Type, removed []string, want []*envoy.Set) {
	ty := &d.types[t]
	for name := range ty.gone {
		if lookup(want, t, name) != nil {
			delete(ty.gone, name)
		}
	}
	for _, name := range removed {
		delete(ty.refused, name)
		// What left one scope may have come into another.
		if ty.wants(name) && lookup(want, t, name) == nil {
			ty.gone = add(ty.gone, name)
		}
	}
}

// send makes the response that brings the proxy to the newest version of a type,
// or nil when that needs none.
func (d *delta) send(t envoy.Type) *frame {
	ty := &d.types[t]
	if len(ty.groups) > 0 {
		return d.sendGroup(t)
	}
	d.s.materialize(t, ty.forced)
	want := d.s.wanted(t)
	r := &response{typ: t, previous: ty.have}
	for name := range ty.absent {
		if lookup(want, t, name) == nil {
			r.removed = append(r.removed, name)
		} else {
			ty.forced = add(ty.forced, name) // it came into being meanwhile
		}
	}
	first, known := ty.first, ty.known
	var parts mem.BufferSlice
	if len(known) > 0 {
		parts = d.reconnected(t, r, want)
	} else {
		parts = d.advance(t, r, want)
	}
	ty.have, ty.first, ty.known, ty.forced, ty.absent = want, false, nil, nil, nil
	if r.count() == 0 && len(r.removed) == 0 && !(first && len(known) == 0 && ty.wildcard) {
		return nil
	}
	return d.frame(t, r, parts)
}

// advance goes from the cursor to the newest version.
func (d *delta) advance(t envoy.Type, r *response, want []*envoy.Set) mem.BufferSlice {
	ty := &d.types[t]
	var changes []*change
	var removed []string
	follow := d.follow(t)
	for _, st := range steps(ty.have, want) {
		with := false
		if i := slices.Index(follow, st); i >= 0 && ty.all {
			with, follow = true, slices.Delete(follow, i, i+1)
		}
		c := d.s.change(st, t, with)
		changes = append(changes, c)
		removed = append(removed, c.removed...)
		if len(c.updated) > 0 {
			r.lists = append(r.lists, c.updated)
		}
		switch {
		case t != envoy.Cluster || st.to == nil || len(c.updated) == 0:
		case d.types[envoy.Endpoints].asked:
			d.clusters = append(d.clusters, st)
		case st.from != nil:
			d.forceEndpoints(c.updated, want)
		}
	}
	for _, st := range follow {
		if st.to == nil {
			continue
		}
		c := d.s.change(st, envoy.Cluster, false)
		for _, e := range companions(c.updated, st.to) {
			ty.forced = add(ty.forced, e.Name)
		}
	}
	d.lost(t, removed, want)
	d.vanished(t, r, want)
	verdicts := d.s.verdicts(t, r.lists)
	if (ty.wildcard || ty.all) && len(ty.forced) == 0 && len(verdicts) == 0 {
		var parts mem.BufferSlice
		for _, c := range changes {
			if c.body != nil {
				parts = append(parts, mem.SliceBuffer(c.body))
			} else {
				parts = segments(parts, c.updated)
			}
		}
		return parts
	}
	d.pick(t, r, want, verdicts)
	return segments(nil, slices.Concat(r.lists...))
}

// follow takes the cluster steps that endpoints have to answer.
func (d *delta) follow(t envoy.Type) []step {
	if t != envoy.Endpoints {
		return nil
	}
	f := d.clusters
	d.clusters = nil
	return f
}

// reconnected compares what the proxy says it has with what it should have. After
// a restart of the control plane that is usually the same, and nothing is sent.
func (d *delta) reconnected(t envoy.Type, r *response, want []*envoy.Set) mem.BufferSlice {
	ty := &d.types[t]
	var list []*envoy.Resource
	unchanged, found := 0, 0
	for _, s := range want {
		for _, res := range s.Resources[t] {
			version, has := ty.known[res.Name]
			if has {
				found++
			}
			if version == res.Version {
				unchanged++
			} else {
				list = append(list, res)
			}
		}
	}
	// Usually nothing is lost. Looking for it took as long as the comparison.
	if found != len(ty.known) {
		for name := range ty.known {
			if lookup(want, t, name) == nil {
				d.lost(t, []string{strings.Clone(name)}, want)
			}
		}
	}
	d.s.server.metrics.unchanged(t, unchanged)
	follow := d.follow(t)
	for _, st := range follow {
		for _, e := range companions(d.s.change(st, envoy.Cluster, false).updated, st.to) {
			ty.forced = add(ty.forced, e.Name)
		}
	}
	d.vanished(t, r, want)
	if len(list) > 0 {
		sortByName(list)
		r.lists = [][]*envoy.Resource{list}
	}
	d.pick(t, r, want, d.s.verdicts(t, r.lists))
	if t == envoy.Cluster {
		d.forceEndpoints(slices.Concat(r.lists...), want)
	}
	return segments(nil, slices.Concat(r.lists...))
}

// forceEndpoints makes the endpoints of these clusters follow, which come from sets.
func (d *delta) forceEndpoints(clusters []*envoy.Resource, sets []*envoy.Set) {
	ty := &d.types[envoy.Endpoints]
	for _, c := range clusters {
		if lookup(sets, envoy.Endpoints, c.Name) != nil {
			ty.forced = add(ty.forced, c.Name)
		}
	}
}

// vanished says at once that what the proxy waits for has ceased to exist. Removals can wait for everything else to be
// confirmed, but not this one: a cluster that waits for endpoints keeps Envoy from confirming any cluster.
func (d *delta) vanished(t envoy.Type, r *response, want []*envoy.Set) {
	ty := &d.types[t]
	for name := range ty.forced {
		if lookup(want, t, name) != nil {
			continue
		}
		delete(ty.forced, name)
		if ty.wants(name) && !slices.Contains(r.removed, name) {
			delete(ty.gone, name)
			r.removed = append(r.removed, name)
		}
	}
}

// pick reduces r to what the proxy subscribed to, adds what must be sent in any
// case, and puts suspects aside: the last good version goes out with the others, the
// suspect itself alone and later.
func (d *delta) pick(t envoy.Type, r *response, want []*envoy.Set, verdicts map[*envoy.Resource]verdict) {
	ty := &d.types[t]
	var list []*envoy.Resource
	for _, l := range r.lists {
		for _, res := range l {
			if !ty.wants(res.Name) {
				continue
			}
			delete(ty.forced, res.Name)
			v, suspect := verdicts[res]
			if !suspect {
				list = append(list, res)
				continue
			}
			had := lookup(r.previous, t, res.Name) != nil || ty.known[res.Name] != ""
			if !had && v.good != nil {
				list = append(list, v.good)
			}
			if had && v.refused {
				continue // this very process said no to it
			}
			ty.groups = append(ty.groups, group{[]*envoy.Resource{res}, r.previous})
		}
	}
	for name := range ty.forced {
		if res := lookup(want, t, name); res != nil && ty.wants(name) {
			list = append(list, res)
		}
	}
	sortByName(list)
	r.lists = nil
	if len(list) > 0 {
		r.lists = [][]*envoy.Resource{list}
	}
}

// sendGroup sends a part of a rejected response, in the newest version.
func (d *delta) sendGroup(t envoy.Type) *frame {
	ty := &d.types[t]
	g := ty.groups[0]
	ty.groups = ty.groups[1:]
	var list []*envoy.Resource
	for _, old := range g.resources {
		if res := lookup(ty.have, t, old.Name); res != nil && ty.wants(res.Name) {
			list = append(list, res)
		}
	}
	if len(list) == 0 {
		return nil
	}
	if t == envoy.Cluster {
		d.forceEndpoints(list, ty.have)
	}
	r := &response{typ: t, previous: g.previous, lists: [][]*envoy.Resource{list}}
	return d.frame(t, r, segments(nil, list))
}

// remove makes the response that takes things away, if there are any.
func (d *delta) remove(t envoy.Type) *frame {
	ty := &d.types[t]
	if len(ty.gone) == 0 {
		return nil
	}
	r := &response{typ: t, previous: ty.have}
	for name := range ty.gone {
		switch {
		case !ty.wants(name):
		case t == envoy.Endpoints && lookup(d.s.wanted(envoy.Cluster), envoy.Cluster, name) == nil:
			// The cluster went, and with it Envoy's interest.
		default:
			r.removed = append(r.removed, name)
		}
	}
	ty.gone = nil
	if len(r.removed) == 0 {
		return nil
	}
	return d.frame(t, r, nil)
}

// frame completes a response and puts it in flight.
func (d *delta) frame(t envoy.Type, r *response, parts mem.BufferSlice) *frame {
	ty := &d.types[t]
	r.nonce = d.s.nextNonce()
	r.at = time.Now()
	var tail []byte
	slices.Sort(r.removed)
	for _, name := range r.removed {
		tail = appendString(tail, responseRemoved, name)
	}
	tail = appendString(tail, responseNonce, r.nonce)
	tail = d.s.greeting(tail, true)
	ty.sent, ty.inflight = r.nonce, r
	for _, l := range r.lists {
		if len(ty.refused) == 0 {
			break
		}
		for _, res := range l {
			delete(ty.refused, res.Name)
		}
	}
	all := make(mem.BufferSlice, 0, len(parts)+2)
	all = append(all, mem.SliceBuffer(typeHeads[t]))
	all = append(all, parts...)
	all = append(all, mem.SliceBuffer(tail))
	return &frame{parts: all, info: r}
}

func add(set map[string]struct{}, name string) map[string]struct{} {
	if set == nil {
		set = make(map[string]struct{})
	}
	set[name] = struct{}{}
	return set
}

func sortByName(list []*envoy.Resource) {
	slices.SortFunc(list, func(a, b *envoy.Resource) int { return strings.Compare(a.Name, b.Name) })
}

func newDelta(s *session) protocol { return &delta{s: s} }

func (d *delta) waiting() (since time.Time) {
	for t := range d.types {
		if r := d.types[t].inflight; r != nil && (since.IsZero() || r.at.Before(since)) {
			since = r.at
		}
	}
	return since
}

func (d *delta) status(t envoy.Type) typeStatus {
	ty := &d.types[t]
	st := typeStatus{Asked: ty.asked, Sent: ty.sent, Acked: ty.acked, InFlight: ty.inflight != nil, Refused: ty.refused}
	switch {
	case ty.all:
		for _, s := range ty.have {
			for _, r := range s.Resources[t] {
				st.Names = append(st.Names, r.Name)
			}
		}
	case !ty.wildcard:
		st.Names = slices.Sorted(maps.Keys(ty.names))
	}
	return st
}
