package mesh

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// withDelegates replaces the http routes that delegate (Istio API: HTTPRoute.delegate) by those of
// their delegate: a VirtualService without hosts that is exported to the namespace of the first. Delegates themselves
// are left out. A delegate that does not exist contributes nothing. prev lends merged objects that come out the same.
func withDelegates(sorted []*VirtualService, all *table[VirtualService], exportTo []string, prev map[string]*VirtualService) ([]*VirtualService, map[string]*VirtualService) {
	out := sorted[:0]
	merged := map[string]*VirtualService{}
	for _, vs := range sorted {
		if len(vs.Spec.Hosts) == 0 {
			continue
		}
		if !slices.ContainsFunc(vs.Spec.Http, func(r *networking.HTTPRoute) bool { return r.Delegate != nil }) {
			out = append(out, vs)
			continue
		}
		parts := []*VirtualService{vs}
		for _, r := range vs.Spec.Http {
			if r.Delegate == nil {
				continue
			}
			d := all.get(r.Delegate.Namespace + "/" + r.Delegate.Name)
			if d == nil || len(d.Spec.Hosts) > 0 || !visible(d.Spec.ExportTo, exportTo, d.Namespace, vs.Namespace) {
				d = nil
			}
			parts = append(parts, d)
		}
		key := vs.Namespace + "/" + vs.Name
		m := prev[key]
		if m == nil || !slices.Equal(m.parts, parts) {
			m = mergeDelegates(vs, parts)
		}
		merged[key] = m
		out = append(out, m)
	}
	return out, merged
}

func mergeDelegates(vs *VirtualService, parts []*VirtualService) *VirtualService {
	spec := proto.Clone(vs.Spec).(*networking.VirtualService)
	m := &VirtualService{Meta: vs.Meta, Spec: spec, parts: parts}
	delegates := parts[1:]
	var routes []*networking.HTTPRoute
	for _, r := range spec.Http {
		if r.Delegate == nil {
			routes = append(routes, r)
			continue
		}
		d := delegates[0]
		delegates = delegates[1:]
		if d == nil {
			continue
		}
		if !slices.Contains(m.Merged, d.Ref) {
			m.Merged = append(m.Merged, d.Ref)
		}
		for _, sub := range d.Spec.Http {
			if sub.Delegate != nil {
				continue // Istio: a delegate must not delegate again
			}
			if merged := mergeRoute(r, proto.Clone(sub).(*networking.HTTPRoute)); merged != nil {
				routes = append(routes, merged)
			}
		}
	}
	spec.Http = routes
	return m
}

// mergeRoute narrows a delegate's route by the route that delegates to it, and fills in what it leaves out. Nil when
// no request can match both.
func mergeRoute(root, leaf *networking.HTTPRoute) *networking.HTTPRoute {
	switch {
	case len(root.Match) == 0:
	case len(leaf.Match) == 0:
		leaf.Match = root.Match
	default:
		var match []*networking.HTTPMatchRequest
		for _, l := range leaf.Match {
			any := false
			for _, r := range root.Match {
				if !conflict(r, l) {
					match, any = append(match, mergeMatch(r, l)), true
				}
			}
			if !any {
				return nil
			}
		}
		leaf.Match = match
	}
	leaf.Name = joinNames(root.Name, leaf.Name)
	inherit(&leaf.Rewrite, root.Rewrite)
	inherit(&leaf.DirectResponse, root.DirectResponse)
	inherit(&leaf.Timeout, root.Timeout)
	inherit(&leaf.Retries, root.Retries)
	inherit(&leaf.Fault, root.Fault)
	inherit(&leaf.Mirror, root.Mirror)
	inherit(&leaf.MirrorPercentage, root.MirrorPercentage)
	inherit(&leaf.CorsPolicy, root.CorsPolicy)
	inherit(&leaf.Headers, root.Headers)
	if leaf.Mirrors == nil {
		leaf.Mirrors = root.Mirrors
	}
	return leaf
}

func inherit[T any](leaf **T, root *T) {
	if *leaf == nil {
		*leaf = root
	}
}

func joinNames(root, leaf string) string {
	if root == "" || leaf == "" {
		return root + leaf
	}
	return root + "-" + leaf
}

func mergeMatch(root, leaf *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	m := proto.Clone(leaf).(*networking.HTTPMatchRequest)
	m.Name = joinNames(root.Name, leaf.Name)
	inherit(&m.Uri, root.Uri)
	inherit(&m.Scheme, root.Scheme)
	inherit(&m.Method, root.Method)
	inherit(&m.Authority, root.Authority)
	m.Headers = union(root.Headers, m.Headers)
	m.WithoutHeaders = union(root.WithoutHeaders, m.WithoutHeaders)
	m.QueryParams = union(root.QueryParams, m.QueryParams)
	m.SourceLabels = union(root.SourceLabels, m.SourceLabels)
	if m.Port == 0 {
		m.Port = root.Port
	}
	if m.SourceNamespace == "" {
		m.SourceNamespace = root.SourceNamespace
	}
	if len(m.Gateways) == 0 {
		m.Gateways = root.Gateways
	}
	if m.StatPrefix == "" {
		m.StatPrefix = root.StatPrefix
	}
	return m
}

func union[V any](root, leaf map[string]V) map[string]V {
	if len(root) == 0 {
		return leaf
	}
	out := maps.Clone(root)
	maps.Copy(out, leaf)
	return out
}

// conflict reports whether a delegate's match asks for something that the delegating match rules out.
func conflict(root, leaf *networking.HTTPMatchRequest) bool {
	if stringConflict(root.Uri, leaf.Uri) || stringConflict(root.Scheme, leaf.Scheme) ||
		stringConflict(root.Method, leaf.Method) || stringConflict(root.Authority, leaf.Authority) {
		return true
	}
	for _, m := range []struct {
		root, leaf map[string]*networking.StringMatch
	}{
		{root.Headers, leaf.Headers}, {root.WithoutHeaders, leaf.WithoutHeaders}, {root.QueryParams, leaf.QueryParams},
	} {
		for k, l := range m.leaf {
			if stringConflict(m.root[k], l) {
				return true
			}
		}
	}
	for k, l := range leaf.SourceLabels {
		if r, ok := root.SourceLabels[k]; ok && r != l {
			return true
		}
	}
	if len(root.Gateways) > 0 && slices.ContainsFunc(leaf.Gateways, func(g string) bool { return !slices.Contains(root.Gateways, g) }) {
		return true
	}
	return root.IgnoreUriCase != leaf.IgnoreUriCase ||
		root.Port > 0 && leaf.Port > 0 && root.Port != leaf.Port ||
		root.SourceNamespace != "" && leaf.SourceNamespace != "" && root.SourceNamespace != leaf.SourceNamespace
}

// stringConflict allows a delegate to be equal or narrower: a longer prefix, or an exact value below the prefix. Regular
// expressions cannot be compared, so beside one nothing else may stand.
func stringConflict(root, leaf *networking.StringMatch) bool {
	if root == nil || leaf == nil {
		return false
	}
	switch r := root.MatchType.(type) {
	case *networking.StringMatch_Exact:
		l, ok := leaf.MatchType.(*networking.StringMatch_Exact)
		return !ok || l.Exact != r.Exact
	case *networking.StringMatch_Prefix:
		switch l := leaf.MatchType.(type) {
		case *networking.StringMatch_Exact:
			return !strings.HasPrefix(l.Exact, r.Prefix)
		case *networking.StringMatch_Prefix:
			return !strings.HasPrefix(l.Prefix, r.Prefix)
		}
	}
	return true
}
