package xds

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
)

// app is what a stream knows beyond the protocol's questions and answers: whom the app waits for, what Envoy will ask for and has been
// sent already, and whether a proxy that comes from another stream has told its story.
type app struct {
	hosts    []string // virtual hosts that its requests wait for
	clusters []string // clusters that its connections wait for, and that are not in the workload's Demand
	// early are endpoints that Envoy is sent before it asks, because it will: see foresee.
	early map[string]struct{}
	// returning: an on-demand proxy that connected again has not said yet what it has asked for in its life. Until it has, nothing that
	// it has is sent again or taken from it.
	returning, recalled bool
}

// question notes virtual hosts that requests of the app wait for. Their names come from the app. Envoy that connects again repeats all that
// it has asked for in its life; it says that it has a thing of that name when it was answered by one, and of other answers it says nothing.
func (d *delta) question(names []string) error {
	if n := len(d.app.hosts); n > maxQuestions {
		return status.Errorf(codes.ResourceExhausted, "%d virtual hosts were asked for, and no answer to the first was confirmed", n)
	}
	for _, name := range names {
		if name == "*" {
			continue
		}
		d.s.hear(envoy.VirtualHost, name)
		if _, answered := d.types[envoy.VirtualHost].known[name]; !answered {
			d.app.hosts = append(d.app.hosts, strings.Clone(name))
		}
	}
	return nil
}

// wish notes a cluster that a connection of the app waits for. Envoy has the others without asking.
func (d *delta) wish(name string, res *envoy.Resource) {
	if res != nil || d.s.appetite == nil || len(name) > maxName {
		d.owe(envoy.Cluster, name, res)
		return
	}
	d.app.clusters = append(d.app.clusters, strings.Clone(name))
	d.s.hear(envoy.Cluster, name)
}

// learned is called when the Demand holds what was heard, as far as it may. Clusters that were asked for are there now, or never.
func (d *delta) learned() {
	sets := d.s.wanted(envoy.Cluster)
	for _, name := range d.app.clusters {
		d.owe(envoy.Cluster, name, lookup(sets, envoy.Cluster, name))
	}
	d.app.clusters = nil
}

// maxInFlight bounds the responses of a type that an app's questions may put on the way before the first is confirmed. Envoy confirms no
// clusters while one of them warms up, and another host's request should not wait for that.
const maxInFlight = 8

// urgent reports whether someone waits for a type now.
func (d *delta) urgent(t envoy.Type) bool {
	ty := &d.types[t]
	if d.s.appetite == nil || len(ty.inflight) >= maxInFlight || len(ty.groups) > 0 {
		return false
	}
	if slices.ContainsFunc(ty.inflight, func(r *response) bool { return r.part }) {
		return false // it is about to be known who is guilty; an answer that names him, too, would be rejected in its turn
	}
	switch t {
	case envoy.Cluster, envoy.VirtualHost:
		return len(d.app.hosts) > 0 || t == envoy.Cluster && len(ty.forced)+len(ty.absent) > 0
	case envoy.Endpoints:
		return len(d.app.hosts) > 0 || len(d.clusters) > 0 || len(d.app.early) > 0
	}
	return false
}

// deaf reports whether the proxy cannot be told of clusters yet. One that connects again while a cluster of its warms up asks for others, and
// may ask for new hosts, before it says which clusters it has.
func (d *delta) deaf() bool { return d.s.appetite != nil && !d.types[envoy.Cluster].asked }

// foresee notes endpoints of clusters that Envoy is about to ask for. They are sent right behind the clusters, which saves a round trip, and
// lets routes follow at once; Envoy's subscription, which comes later, is answered by that. (A late unsubscription, of a cluster that
// went and has come back meanwhile, changes nothing: Envoy has the endpoints by then.)
func (d *delta) foresee(st step) {
	ty := &d.types[envoy.Endpoints]
	for _, c := range d.s.change(st, envoy.Cluster, false).updated {
		if ty.subscribed(c.Name) || ty.all && st.from != nil && find(st.from.Resources[envoy.Cluster], c.Name) != nil {
			continue
		}
		if e := find(st.to.Resources[envoy.Endpoints], c.Name); e != nil {
			d.app.early = add(d.app.early, e.Name)
		}
	}
}

// foresees reports whether endpoints were, or are to be, sent before Envoy asks for them.
func (a *app) foresees(name string) bool {
	_, is := a.early[name]
	return is
}

// foreseen is foresees for the one time that Envoy asks.
func (d *delta) foreseen(name string) bool {
	is := d.app.foresees(name)
	delete(d.app.early, name)
	return is
}

// forgo notes that Envoy will not ask.
func (d *delta) forgo(t envoy.Type, name string) {
	if t == envoy.Endpoints {
		delete(d.app.early, name)
	}
}

// early reports whether endpoints are to be sent although the proxy has asked for none yet, since their clusters were sent.
func (d *delta) early() bool {
	return len(d.clusters) > 0 || d.s.appetite != nil && len(d.app.early) > 0 && len(d.types[envoy.Endpoints].forced) > 0
}

// overtaken handles the first request for endpoints when some were sent before it. Envoy drops what it is sent of a type that it has not asked
// for, and never answers it; whether it had done so already when they came cannot be known. So they are sent again, and nobody waits for the answer to the first.
func (d *delta) overtaken(r *request) error {
	ty := &d.types[envoy.Endpoints]
	ty.asked, ty.inflight, d.app.early = true, nil, nil
	if err := d.subscribe(envoy.Endpoints, r.subscribe); err != nil {
		return err
	}
	for name, version := range r.initial {
		if res := lookup(d.s.wanted(envoy.Endpoints), envoy.Endpoints, name); res != nil && res.Version == version {
			delete(ty.forced, name)
		}
	}
	return nil
}

// patience is how long a proxy that connects again may take to say what it has asked for. Envoy says it at once.
const patience = 15 * time.Second

// recall looks at what a proxy has from an earlier stream: it must have been asked for, by this replica of the workload or another one.
func (d *delta) recall(t envoy.Type, r *request) {
	if d.s.appetite == nil {
		return
	}
	switch t {
	case envoy.Cluster:
		d.app.returning = len(r.initial) > 0 && !d.types[envoy.VirtualHost].asked
	case envoy.VirtualHost:
		for name, version := range r.initial {
			if version != unresolved && len(name) <= maxName && !strings.HasSuffix(name, everything) {
				d.s.had = append(d.s.had, strings.Clone(name))
			}
		}
	}
}

// returned ends the time in which a proxy that connected again tells what it has asked for. Its clusters that
// no virtual host needs were asked for one by one, by this replica or by another: they stay, if the mesh still has them.
func (d *delta) returned() {
	ty := &d.types[envoy.VirtualHost]
	if !d.app.returning || !(ty.asked && !ty.first) && time.Since(d.s.opened) < patience {
		return
	}
	if !d.app.recalled {
		d.app.recalled = true
		for name := range d.types[envoy.Cluster].gone {
			if d.s.publication.mesh.Means(d.s.proxy, envoy.Cluster, name) == envoy.Known {
				d.s.hear(envoy.Cluster, name)
			}
		}
		if d.s.curious() {
			return
		}
	}
	d.app.returning = false
	for t := range d.types {
		if !d.types[t].first {
			d.types[t].known = nil
		}
	}
}

// alarm is when a proxy has had the time to tell. One that owes an answer tells that first.
func (d *delta) alarm() time.Time {
	if !d.app.returning || slices.ContainsFunc(d.types[:], func(ty deltaType) bool { return len(ty.inflight) > 0 }) {
		return time.Time{}
	}
	return d.s.opened.Add(patience)
}
