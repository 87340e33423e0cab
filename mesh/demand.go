package mesh

import (
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// demand knows which Secrets gateways need: those that Gateways name, in the namespace of each gateway pod that they select. Secrets of other
// namespaces are out of reach of a gateway, whoever wrote the Gateway.
type demand struct {
	gateways map[string]wanted    // by "namespace/name": what each Gateway wants
	classes  map[string]*podClass // by selector
	changed  chan struct{}        // closed when the list is another
	asked    bool                 // somebody waits for changed
}

// wanted is what one Gateway asks for.
type wanted struct {
	class string
	names []string
}

// podClass is the gateway pods that one selector selects.
type podClass struct {
	selector map[string]string
	gateways int
	pods     map[string]int // by namespace
}

func newDemand() demand {
	return demand{gateways: map[string]wanted{}, classes: map[string]*podClass{}, changed: make(chan struct{})}
}

// Credentials lists the Secrets that gateways need now, sorted, and a channel that is closed when the list may have become another.
func (s *Store) Credentials() (secrets []Key, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[Key]struct{}{}
	for _, w := range s.demand.gateways {
		for ns := range s.demand.classes[w.class].pods {
			for _, name := range w.names {
				found[Key{"Secret", ns, name}] = struct{}{}
			}
		}
	}
	s.demand.asked = true
	return slices.SortedFunc(maps.Keys(found), func(a, b Key) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) }), s.demand.changed
}

func (d *demand) notify() {
	if d.asked {
		d.asked = false
		close(d.changed)
		d.changed = make(chan struct{})
	}
}

// demandOf takes in what a Gateway asks for; spec is nil when it is gone.
func (s *Store) demandOf(gateway string, spec *networking.Gateway) {
	d := &s.demand
	next := wanted{names: credentialNames(spec)}
	old, had := d.gateways[gateway]
	if len(next.names) > 0 {
		next.class = labelsKey(spec.GetSelector())
	}
	if had && old.class == next.class && slices.Equal(old.names, next.names) || !had && len(next.names) == 0 {
		return
	}
	if had {
		delete(d.gateways, gateway)
		c := d.classes[old.class]
		if c.gateways--; c.gateways == 0 && (len(next.names) == 0 || next.class != old.class) {
			delete(d.classes, old.class)
		}
	}
	if len(next.names) > 0 {
		c := d.classes[next.class]
		if c == nil {
			c = &podClass{selector: spec.GetSelector(), pods: map[string]int{}}
			d.classes[next.class] = c
			for w := range s.latestWorkloads() {
				c.count(w, 1)
			}
		}
		c.gateways++
		d.gateways[gateway] = next
	}
	d.notify()
}

// demandBy takes in a pod that comes, changes or goes.
func (s *Store) demandBy(old, now *Workload) {
	moved := false
	for _, c := range s.demand.classes {
		moved = c.count(now, 1) || moved
		moved = c.count(old, -1) || moved
	}
	if moved {
		s.demand.notify()
	}
}

// count reports whether a namespace came or went.
func (c *podClass) count(w *Workload, by int) bool {
	if w == nil || !SelectorMatches(c.selector, w.Labels) || !IsGateway(w.Annotations) {
		return false
	}
	n := c.pods[w.Namespace] + by
	if n == 0 {
		delete(c.pods, w.Namespace)
		return true
	}
	c.pods[w.Namespace] = n
	return n == by
}

// latestWorkloads yields all pods as they were last applied.
func (s *Store) latestWorkloads() func(func(*Workload) bool) {
	return func(yield func(*Workload) bool) {
		for _, w := range s.pending.workloads {
			if w != nil && !yield(w) {
				return
			}
		}
		for _, w := range s.current.workloads.values() {
			if _, newer := s.pending.workloads[w.Namespace+"/"+w.Name]; !newer && !yield(w) {
				return
			}
		}
	}
}

// credentialNames are the Secrets that a Gateway names, and those that may hold the authorities for them.
func credentialNames(g *networking.Gateway) []string {
	var out []string
	for _, s := range g.GetServers() {
		for _, name := range CredentialNames(s.GetTls()) {
			out = append(out, name, name+authoritiesSuffix)
		}
		if name := s.GetTls().GetCaCertCredentialName(); CredentialNameFault(name) == "" {
			out = append(out, name, name+authoritiesSuffix)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// CredentialNames are the names of the Secrets with a server's certificates, those that can be names.
func CredentialNames(t *networking.ServerTLSSettings) []string {
	var out []string
	for _, name := range append([]string{t.GetCredentialName()}, t.GetCredentialNames()...) {
		if CredentialNameFault(name) == "" {
			out = append(out, name)
		}
	}
	return out
}

func labelsKey(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k + "=" + labels[k] + ",")
	}
	return b.String()
}
