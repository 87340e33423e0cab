package envoy

import (
	"slices"
	"strings"
)

// Demand is what a workload has asked for so far. All replicas of a workload share it, and it only grows. It is immutable: a larger one
// takes its place. What an on-demand sidecar is told is a pure function of (snapshot, proxy, Demand).
//
// The names come from apps: nothing in them is trusted. What is no name at all never gets a virtual host (see Means).
type Demand struct {
	Workload string // "namespace/service account"

	// Names are sorted, without repetition. VirtualHost: "<route config>/<authority, lower case, as the app wrote it>", as in
	// "80/reviews" and "8080/reviews.default:8080"; "80/*" is everything in table 80, see everyHost. Cluster: cluster names, of connections that are no HTTP. Others: none.
	Names [NumTypes][]string
}

// With is d and further names of one type; d itself when it has them all. d may not be nil.
func (d *Demand) With(t Type, names ...string) *Demand {
	fresh := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return d.Has(t, n) })
	if len(fresh) == 0 {
		return d
	}
	for i, n := range fresh {
		fresh[i] = strings.Clone(n) // perhaps a part of a message
	}
	larger := *d
	larger.Names[t] = slices.Concat(d.Names[t], fresh)
	slices.Sort(larger.Names[t])
	larger.Names[t] = slices.Compact(larger.Names[t])
	return &larger
}

// Merge is what either of two Demands of one workload holds; d itself when o holds nothing more. Neither may be nil.
func (d *Demand) Merge(o *Demand) *Demand {
	for t, names := range o.Names {
		d = d.With(Type(t), names...)
	}
	return d
}

// Has reports whether the name was asked for.
func (d *Demand) Has(t Type, name string) bool {
	_, has := slices.BinarySearch(d.Names[t], name)
	return has
}

// Len is the number of names of all types.
func (d *Demand) Len() int {
	n := 0
	for _, names := range d.Names {
		n += len(names)
	}
	return n
}

// Meaning says what an asked name is to a proxy, whether it is in the proxy's Demand or not.
type Meaning uint8

const (
	// Nonsense is no name that could mean anything, now or later: it must not enter a Demand. Answered by an empty Resource (VirtualHost) or
	// by its removal (Cluster).
	Nonsense Meaning = iota
	// Stranger is a proper name that nobody in the mesh has. In a Demand it gets a virtual host by outbound policy.
	Stranger
	// Known is something in the mesh that the proxy may see.
	Known
)
