package mesh

import (
	"slices"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// destinationRuleIndex is shared by all snapshots between which no DestinationRule changed.
type destinationRuleIndex struct {
	exportTo   []string // MeshConfig.defaultDestinationRuleExportTo
	root       string
	namespaces map[string]*namespaceRules
}

// namespaceRules are the rules of one namespace by host.
type namespaceRules struct {
	inputs   []*DestinationRule // in order of precedence, before merging
	exact    map[string][]*DestinationRule
	wildcard []hostRules // most specific first
}

type hostRules struct {
	host  string
	rules []*DestinationRule
}

func newDestinationRuleIndex(all *table[DestinationRule], exportTo []string, root string, prev *destinationRuleIndex) *destinationRuleIndex {
	x := &destinationRuleIndex{exportTo: exportTo, root: root, namespaces: map[string]*namespaceRules{}}
	byNamespace := map[string][]*DestinationRule{}
	for _, r := range all.values() {
		byNamespace[r.Namespace] = append(byNamespace[r.Namespace], r)
	}
	for ns, rules := range byNamespace {
		slices.SortFunc(rules, func(a, b *DestinationRule) int { return byPrecedence(&a.Meta, &b.Meta) })
		if prev != nil {
			if old := prev.namespaces[ns]; old != nil && slices.Equal(old.inputs, rules) {
				x.namespaces[ns] = old
				continue
			}
		}
		var old *namespaceRules
		if prev != nil {
			old = prev.namespaces[ns]
		}
		x.namespaces[ns] = mergeRules(rules, old)
	}
	return x
}

// mergeRules merges the rules of one namespace that are for the same host and are exported
// alike. prev lends the merged rules that come out the same.
func mergeRules(rules []*DestinationRule, prev *namespaceRules) *namespaceRules {
	n := &namespaceRules{inputs: rules, exact: map[string][]*DestinationRule{}}
	groups := map[string][][]*DestinationRule{} // host -> groups of one exportTo, in order of precedence
	for _, r := range rules {
		if len(r.Spec.GetWorkloadSelector().GetMatchLabels()) > 0 {
			continue // for single workloads, which the lookup by namespace does not know; the Store reports it
		}
		h := r.Spec.Host
		i := slices.IndexFunc(groups[h], func(g []*DestinationRule) bool { return sameSet(g[0].Spec.ExportTo, r.Spec.ExportTo) })
		if i < 0 {
			groups[h] = append(groups[h], nil)
			i = len(groups[h]) - 1
		}
		groups[h][i] = append(groups[h][i], r)
	}
	for h, gs := range groups {
		for _, g := range gs {
			n.exact[h] = append(n.exact[h], mergeGroup(g, prev))
		}
		if strings.HasPrefix(h, "*") {
			n.wildcard = append(n.wildcard, hostRules{h, n.exact[h]})
		}
	}
	sort.Slice(n.wildcard, func(i, j int) bool { return CompareHosts(n.wildcard[i].host, n.wildcard[j].host) < 0 })
	return n
}

func mergeGroup(group []*DestinationRule, prev *namespaceRules) *DestinationRule {
	if len(group) == 1 {
		return group[0]
	}
	if prev != nil {
		for _, old := range prev.exact[group[0].Spec.Host] {
			if slices.Equal(old.parts, group) {
				return old
			}
		}
	}
	spec := proto.Clone(group[0].Spec).(*networking.DestinationRule)
	merged := &DestinationRule{Meta: group[0].Meta, Spec: spec, parts: group}
	have := map[string]bool{}
	for _, s := range spec.Subsets {
		have[s.Name] = true
	}
	for _, r := range group[1:] {
		merged.Merged = append(merged.Merged, r.Ref)
		for _, s := range r.Spec.Subsets {
			if !have[s.Name] {
				have[s.Name] = true
				spec.Subsets = append(spec.Subsets, s)
			}
		}
		if spec.TrafficPolicy == nil {
			spec.TrafficPolicy = r.Spec.TrafficPolicy
		}
	}
	return merged
}

func sameSet(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// find returns the rule of the most specific host that covers host, among those that ok accepts.
func (n *namespaceRules) find(host string, ok func(*DestinationRule) bool) *DestinationRule {
	if n == nil {
		return nil
	}
	for _, r := range n.exact[host] {
		if ok(r) {
			return r
		}
	}
	for _, w := range n.wildcard {
		if !HostMatches(w.host, host) {
			continue
		}
		for _, r := range w.rules {
			if ok(r) {
				return r
			}
		}
	}
	return nil
}

// lookup implements Istio's order: the client's namespace, the service's namespace, the
// root namespace. Rules of the root namespace are general ones, so a client that lives there takes
// only its private rules before those of the service.
func (x *destinationRuleIndex) lookup(client, host, owner string) *DestinationRule {
	own := func(r *DestinationRule) bool {
		if client == x.root {
			return privateOnly(r.Spec.ExportTo, x.exportTo, r.Namespace)
		}
		return len(r.Spec.ExportTo) == 0 || visible(r.Spec.ExportTo, nil, r.Namespace, client)
	}
	if r := x.namespaces[client].find(host, own); r != nil {
		return r
	}
	exported := func(r *DestinationRule) bool { return visible(r.Spec.ExportTo, x.exportTo, r.Namespace, client) }
	if owner != client {
		if r := x.namespaces[owner].find(host, exported); r != nil {
			return r
		}
	}
	return x.namespaces[x.root].find(host, exported)
}
