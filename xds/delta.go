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
	// tables are the route configurations that the proxy asked for, and whose virtual hosts it has not heard of since.
	tables map[string]struct{}
	app    app

	last struct { // what steps found out
		have, want []*envoy.Set
		steps      []step
	}
}

type deltaType struct {
	asked    bool
	wildcard bool                // subscribed to whatever there is
	all      bool                // endpoints: subscribed to each one that there is, by name
	names    map[string]struct{} // other subscriptions

	have     []*envoy.Set      // cursor
	known    map[string]string // what the proxy says it has; until the first response, and for as long as it is returning
	first    bool              // the first request was not dealt with yet
	forced   map[string]struct{}
	absent   map[string]struct{} // asked for, and not there: to be said at once
	gone     map[string]struct{} // to be removed when nothing refers to it any more
	groups   []group             // parts of a rejected response, to be sent on their own
	inflight []*response         // the oldest first; more than one only while the app waits for something
	refused  map[string]refusal

	sent, acked string // nonces
}

// response is what was sent and not yet answered.
type response struct {
	typ      envoy.Type
	nonce    string
	lists    [][]*envoy.Resource
	removed  []string
	previous []*envoy.Set // what the proxy had before
	answers  []string     // questions that it answers
	part     bool         // of one that was rejected
	attempt  int          // how often these resources stood alone before
	at       time.Time
}

func (r *response) count() (n int) {
	for _, l := range r.lists {
		n += len(l)
	}
	return n
}

// request takes in one message of the proxy. An error ends the stream.
func (d *delta) request(t envoy.Type, r *request) error {
	ty := &d.types[t]
	i := slices.IndexFunc(ty.inflight, func(f *response) bool { return f.nonce == r.nonce })
	if i >= 0 {
		d.answer(t, r, i)
	}
	switch {
	case ty.asked:
	case i >= 0 && len(r.subscribe) == 0:
		return nil // endpoints that were sent unasked
	case ty.have != nil:
		return d.overtaken(r)
	default:
		// A first request that answers something is a left-over of another server's stream: only its names count.
		ty.asked, ty.first, ty.known = true, true, r.initial
		ty.wildcard = wildcardType(t) && len(r.subscribe) == 0
		if t == envoy.Endpoints && !d.types[envoy.Cluster].asked {
			// Envoy asks for clusters first, unless one that it was sent on its last stream is still warming: it waits to be sent
			// its endpoints, also those that Envoy knows. Until then Envoy neither asks for clusters nor confirms any.
			ty.known = nil
		}
		d.recall(t, r)
	}
	if err := d.subscribe(t, r.subscribe); err != nil {
		return err
	}
	d.unsubscribe(t, r.unsubscribe)
	return nil
}

// wildcardType: an empty first subscription means "everything" for these only (xDS
// protocol: "How the client specifies what resources to return"; for virtual hosts it is what Envoy does).
func wildcardType(t envoy.Type) bool {
	return t == envoy.Cluster || t == envoy.Listener || t == envoy.VirtualHost
}

// next returns the next message to write, or nil when there is nothing to say
// now. The order is make before break: clusters, endpoints, listeners, routes, virtual hosts; what
// is gone is removed when the proxy has confirmed all of that.
func (d *delta) next() *frame {
	held := d.deaf() // something that others may refer to cannot be sent yet
	for t := range envoy.NumTypes {
		ty := &d.types[t]
		if !ty.asked && !(t == envoy.Endpoints && d.early()) || !d.due(t) {
			continue
		}
		if len(ty.inflight) > 0 && !d.urgent(t) {
			held = true
			continue
		}
		// Endpoints and secrets break nothing, and warming clusters wait for them.
		if held && (t == envoy.Listener || t == envoy.Route || t == envoy.VirtualHost) {
			continue
		}
		if f := d.send(t); f != nil {
			return f
		}
	}
	if held {
		return nil
	}
	if d.returned(); !d.waiting().IsZero() || d.s.curious() {
		return nil
	}
	for _, t := range [...]envoy.Type{envoy.Listener, envoy.Route, envoy.VirtualHost, envoy.Cluster, envoy.Endpoints, envoy.Secret} {
		if d.app.returning && (t == envoy.Cluster || t == envoy.Endpoints || t == envoy.VirtualHost) {
			continue
		}
		if f := d.remove(t); f != nil {
			return f
		}
	}
	return nil
}

func (d *delta) pending() bool {
	for t := range envoy.NumTypes {
		if ty := &d.types[t]; len(ty.gone) > 0 || ty.asked && d.due(t) {
			return true
		}
	}
	return d.app.returning || len(d.clusters) > 0
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
	if t == envoy.VirtualHost && (len(d.app.hosts) > 0 || len(d.tables) > 0 && d.incomplete()) {
		return true
	}
	want := d.s.wanted(t)
	if slices.Equal(ty.have, want) {
		return false
	}
	var removed []string
	for _, st := range d.steps(ty.have, want) {
		c := d.s.change(st, t, false)
		if len(c.updated) > 0 || t == envoy.VirtualHost && len(c.removed) > 0 {
			return true
		}
		removed = append(removed, c.removed...)
	}
	d.lost(t, removed, want)
	ty.have = want
	return false
}

// steps are those from one slice of Sets to another. Most types of a stream have gone just the same way.
func (d *delta) steps(have, want []*envoy.Set) []step {
	if l := &d.last; len(have) == 0 || !identical(l.have, have) || !identical(l.want, want) {
		l.have, l.want, l.steps = have, want, steps(have, want)
	}
	return d.last.steps
}

// identical reports whether two slices, which nobody changes, are one.
func identical(a, b []*envoy.Set) bool { return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0] }

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
		d.forgo(t, name)
		// What left one scope may have come into another.
		if d.wants(t, name) && lookup(want, t, name) == nil {
			ty.gone = add(ty.gone, name)
		}
	}
}

// send makes the response that brings the proxy to the newest version of a type,
// or nil when that needs none.
func (d *delta) send(t envoy.Type) *frame {
	ty := &d.types[t]
	if f := d.sendGroups(t); f != nil {
		return f
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
	var a replies
	if t == envoy.VirtualHost {
		if first || len(d.tables) > 0 {
			d.complete(r, want)
		}
		if len(d.app.hosts) > 0 {
			a = d.answers(r, want)
		}
	}
	var parts mem.BufferSlice
	if len(known) > 0 {
		parts = d.reconnected(t, r, want)
	} else {
		parts = d.advance(t, r, want)
	}
	if len(r.answers) > 0 {
		parts = a.segments(r.lists, want)
	}
	ty.have, ty.first, ty.known, ty.forced, ty.absent = want, false, nil, nil, nil
	if d.app.returning && len(known) > 0 {
		ty.known = known
		for _, res := range slices.Concat(r.lists...) {
			known[res.Name] = res.Version
		}
	}
	if r.count() == 0 && len(r.removed) == 0 && len(r.answers) == 0 && !(first && len(known) == 0 && ty.wildcard) {
		return d.sendGroups(t) // all that is new may be under suspicion
	}
	return d.frame(t, r, parts)
}

// advance goes from the cursor to the newest version.
func (d *delta) advance(t envoy.Type, r *response, want []*envoy.Set) mem.BufferSlice {
	ty := &d.types[t]
	var changes []*change
	var removed []string
	follow := d.follow(t)
	var accompanied []step
	for _, st := range d.steps(ty.have, want) {
		with := false
		if i := slices.Index(follow, st); i >= 0 && ty.all {
			with, follow, accompanied = true, slices.Delete(follow, i, i+1), append(accompanied, st)
		}
		c := d.s.change(st, t, with)
		changes = append(changes, c)
		removed = append(removed, c.removed...)
		if len(c.updated) > 0 {
			r.lists = append(r.lists, c.updated)
		}
		if t == envoy.Cluster && st.to != nil && len(c.updated) > 0 && (d.types[envoy.Endpoints].asked || len(r.previous) > 0) {
			// Of the first clusters Envoy asks the endpoints itself.
			d.clusters = append(d.clusters, st)
		}
	}
	d.accompany(follow)
	d.lost(t, removed, want)
	d.vanished(t, r, want)
	d.withdraw(t, r, want)
	verdicts := d.s.verdicts(t, r.lists)
	if (ty.wildcard || ty.all) && len(ty.forced) == 0 && len(verdicts) == 0 {
		var parts mem.BufferSlice
		for _, c := range changes {
			parts = append(parts, c.parts...)
		}
		return parts
	}
	d.accompany(accompanied) // one by one now
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
	for _, st := range f {
		d.foresee(st)
	}
	return f
}

// accompany makes the endpoints of changed clusters follow them, whether they changed themselves or not.
func (d *delta) accompany(follow []step) {
	ty := &d.types[envoy.Endpoints]
	for _, st := range follow {
		for _, e := range companions(d.s.change(st, envoy.Cluster, false).updated, st.to) {
			ty.forced = add(ty.forced, e.Name)
		}
	}
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
	if ty.first {
		d.s.server.metrics.unchanged(t, unchanged)
	}
	d.lost(t, nil, want)
	d.accompany(d.follow(t))
	d.vanished(t, r, want)
	d.withdraw(t, r, want)
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
		if lookup(sets, envoy.Endpoints, c.Name) == nil {
			continue
		}
		ty.forced = add(ty.forced, c.Name)
		if known := d.types[envoy.Cluster].known; len(known) > 0 && known[c.Name] == "" && !ty.subscribed(c.Name) {
			d.app.early = add(d.app.early, c.Name) // new to a proxy that connected again
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
		if d.wants(t, name) && !slices.Contains(r.removed, name) {
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
	var list, owed []*envoy.Resource
	judge := func(res *envoy.Resource, v verdict, owed bool) {
		had := lookup(r.previous, t, res.Name) != nil || ty.known[res.Name] != ""
		if v.good != nil && (owed || !had) {
			list = append(list, v.good)
		}
		// This very process may have said no to it. Who waits for a word, as a changed cluster does for its endpoints, and can be sent nothing
		// better, says no again, and waits no more.
		if had && v.refused && (v.good != nil || !owed) {
			return
		}
		ty.groups = append(ty.groups, group{resources: []*envoy.Resource{res}, previous: r.previous})
	}
	for _, l := range r.lists {
		for _, res := range l {
			if !d.wants(t, res.Name) {
				continue
			}
			_, forced := ty.forced[res.Name]
			delete(ty.forced, res.Name)
			if v, suspect := verdicts[res]; suspect {
				judge(res, v, forced)
			} else {
				list = append(list, res)
			}
		}
	}
	for name := range ty.forced {
		if res := lookup(want, t, name); res != nil && d.wants(t, name) {
			owed = append(owed, res)
		}
	}
	verdicts = d.s.verdicts(t, [][]*envoy.Resource{sortByName(owed)})
	for _, res := range owed {
		if v, suspect := verdicts[res]; suspect {
			judge(res, v, true)
		} else {
			list = append(list, res)
		}
	}
	sortByName(list)
	r.lists = nil
	if len(list) > 0 {
		r.lists = [][]*envoy.Resource{list}
	}
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
		case !d.wants(t, name):
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
		delete(ty.known, name)
	}
	tail = appendString(tail, responseNonce, r.nonce)
	tail = d.s.greeting(tail, true)
	ty.sent, ty.inflight = r.nonce, append(ty.inflight, r)
	for _, l := range r.lists {
		if len(ty.refused) == 0 {
			break
		}
		for _, res := range l {
			if _, was := ty.refused[res.Name]; was && t == envoy.Route {
				d.tables = add(d.tables, res.Name) // perhaps it has never been there
			}
			if lookup(d.s.wanted(t), t, res.Name) == res { // not the last good one instead
				delete(ty.refused, res.Name)
			}
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

func sortByName(list []*envoy.Resource) []*envoy.Resource {
	slices.SortFunc(list, func(a, b *envoy.Resource) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func newDelta(s *session) protocol { return &delta{s: s} }

func (d *delta) waiting() (since time.Time) {
	for t := range d.types {
		ty := &d.types[t]
		if !ty.asked {
			continue // endpoints that Envoy may have dropped: it owes nothing
		}
		if f := ty.inflight; len(f) > 0 && (since.IsZero() || f[0].at.Before(since)) {
			since = f[0].at
		}
	}
	return since
}

func (d *delta) status(t envoy.Type) typeStatus {
	ty := &d.types[t]
	st := typeStatus{Asked: ty.asked, Sent: ty.sent, Acked: ty.acked, InFlight: len(ty.inflight) > 0, Refused: ty.refused}
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
