package xds

import (
	"slices"

	"github.com/weft-mesh/weft/envoy"
)

// step is a transition of one scope.
type step struct{ from, to *envoy.Set }

// steps pairs the Sets that a proxy has with those it should have. Scopes that
// have no counterpart, because the pod's labels put it elsewhere, are compared as a whole:
// the same resource may come from either.
func steps(have, want []*envoy.Set) []step {
	out := make([]step, 0, len(want))
	var old, new []*envoy.Set
	for _, w := range want {
		i := slices.IndexFunc(have, func(h *envoy.Set) bool { return h.Scope == w.Scope })
		if i < 0 {
			new = append(new, w)
		} else if have[i] != w {
			out = append(out, step{have[i], w})
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(w *envoy.Set) bool { return h.Scope == w.Scope }) {
			old = append(old, h)
		}
	}
	switch {
	case len(old) == 0:
		for _, w := range new {
			out = append(out, step{nil, w})
		}
	case len(new) == 0:
		for _, h := range old {
			out = append(out, step{h, nil})
		}
	default:
		return []step{{joined(have), joined(want)}}
	}
	return out
}

// joined puts several Sets into one that no other stream shares.
func joined(sets []*envoy.Set) *envoy.Set {
	all := &envoy.Set{Scope: private + "joined"}
	for t := range all.Resources {
		for _, s := range sets {
			all.Resources[t] = append(all.Resources[t], s.Resources[t]...)
		}
		sortByName(all.Resources[t])
	}
	return all
}

// lookup finds a resource by name in Sets that are disjoint.
func lookup(sets []*envoy.Set, t envoy.Type, name string) *envoy.Resource {
	for _, s := range sets {
		if r := find(s.Resources[t], name); r != nil {
			return r
		}
	}
	return nil
}

func total(sets []*envoy.Set, t envoy.Type) (n int) {
	for _, s := range sets {
		n += len(s.Resources[t])
	}
	return n
}
