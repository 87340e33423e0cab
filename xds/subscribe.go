package xds

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
)

// A stream remembers what it was asked for: the names of endpoints, routes and secrets that are not simply all there are. maxNames is above
// the clusters of the largest mesh; with maxName it bounds what one stream can make this server keep.
const (
	maxNames     = 1 << 17
	maxQuestions = 1 << 14 // not answered yet when further ones come; a proxy that confirms what it is sent has none for long
)

// subscribe adds names to what a proxy wants, and notes what it must be told for that. An error ends the stream.
func (d *delta) subscribe(t envoy.Type, names []string) error {
	ty := &d.types[t]
	if len(names) == 0 {
		return nil
	}
	sets := d.s.wanted(t)
	if ty.first && t == envoy.Endpoints && coversAll(names, sets) {
		ty.all = true
		return nil
	}
	if slices.Contains(names, "*") {
		ty.wildcard = true
	}
	if t == envoy.VirtualHost {
		return d.question(names)
	}
	for _, name := range names {
		if name == "*" {
			continue
		}
		res := lookup(sets, t, name)
		if t == envoy.Cluster && ty.wildcard {
			d.wish(name, res)
			continue
		}
		if res == nil && len(name) > maxName {
			return status.Errorf(codes.InvalidArgument, "%s name of %d bytes", shortName(t), len(name))
		}
		if res != nil {
			name = res.Name // the request's memory is not kept
		} else {
			name = strings.Clone(name)
		}
		if !ty.all || res == nil {
			if ty.names == nil {
				ty.names = make(map[string]struct{})
			}
			ty.names[name] = struct{}{}
		}
		if t != envoy.Endpoints || ty.first || res == nil || !d.foreseen(name) {
			d.owe(t, name, res)
		}
		if t == envoy.Route && (res == nil || res.VHDS) && ty.known[name] == "" {
			d.tables = add(d.tables, name)
		}
	}
	if len(ty.names) > maxNames || len(ty.absent)+len(d.app.clusters) > maxQuestions {
		return status.Errorf(codes.ResourceExhausted, "too many %s names: %d, and %d that nothing has", shortName(t), len(ty.names), len(ty.absent)+len(d.app.clusters))
	}
	if t == envoy.Endpoints && !ty.all && len(ty.names) >= total(sets, t) && total(sets, t) > 0 {
		d.collapse(ty, sets)
	}
	return nil
}

// owe notes that a proxy waits for an answer. One that asks again does, too, whatever we believe it has; silence would
// keep it waiting for initial_fetch_timeout.
func (d *delta) owe(t envoy.Type, name string, res *envoy.Resource) {
	ty := &d.types[t]
	switch {
	case res == nil && ty.known[name] == "":
		ty.absent = add(ty.absent, strings.Clone(name))
	case res != nil && !ty.first:
		ty.forced = add(ty.forced, res.Name)
	}
}

// collapse replaces a complete list of names by one flag.
func (d *delta) collapse(ty *deltaType, sets []*envoy.Set) {
	rest := 0
	for _, s := range sets {
		for _, r := range s.Resources[envoy.Endpoints] {
			if _, ok := ty.names[r.Name]; !ok {
				return
			}
			rest++
		}
	}
	names := ty.names
	ty.all, ty.names = true, nil
	if len(names) == rest {
		return
	}
	for name := range names {
		if lookup(sets, envoy.Endpoints, name) == nil {
			ty.names = add(ty.names, name)
		}
	}
}

// unsubscribe takes names away.
func (d *delta) unsubscribe(t envoy.Type, names []string) {
	ty := &d.types[t]
	for _, name := range names {
		if name == "*" {
			ty.wildcard = false
			continue
		}
		if ty.all {
			if lookup(d.s.wanted(t), t, name) != nil || lookup(ty.have, t, name) != nil {
				d.expand(ty, name)
			}
		}
		delete(ty.names, name)
		delete(ty.forced, name)
		delete(ty.absent, name)
		delete(ty.gone, name)
		delete(ty.refused, name)
		d.forgo(t, name)
		if t == envoy.Route {
			delete(d.tables, name)
		}
	}
}

// expand is the inverse of collapse, without one name. A name that is about to
// disappear with its cluster is no reason for it.
func (d *delta) expand(ty *deltaType, without string) {
	sets := d.s.wanted(envoy.Endpoints)
	if lookup(sets, envoy.Endpoints, without) == nil {
		return
	}
	ty.all = false
	for _, s := range sets {
		for _, r := range s.Resources[envoy.Endpoints] {
			ty.names = add(ty.names, r.Name)
		}
	}
}

// wants reports whether the proxy is subscribed to a resource that exists, or will be.
func (d *delta) wants(t envoy.Type, name string) bool {
	ty := &d.types[t]
	return ty.wildcard || ty.all || ty.subscribed(name) || t == envoy.Endpoints && d.app.foresees(name)
}

// subscribed reports whether the proxy asked for just this name.
func (ty *deltaType) subscribed(name string) bool {
	_, ok := ty.names[name]
	return ok
}

// coversAll reports whether names are just those of the endpoints in sets. Envoy sends them sorted, and so are Sets: one pass over both
// then does, where looking up a thousand names took a tenth of a millisecond for each proxy that connects.
func coversAll(names []string, sets []*envoy.Set) bool {
	if len(names) != total(sets, envoy.Endpoints) {
		return false
	}
	next := make([][]*envoy.Resource, len(sets))
	for i, s := range sets {
		next[i] = s.Resources[envoy.Endpoints]
	}
names:
	for _, name := range names {
		for i, list := range next {
			if len(list) > 0 && list[0].Name == name {
				next[i] = list[1:]
				continue names
			}
		}
		return false
	}
	return true
}
