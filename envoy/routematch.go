package envoy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	networking "istio.io/api/networking/v1alpha3"
)

func matchAll() *route.RouteMatch {
	return &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}}
}

// takesAll reports whether every request matches.
func takesAll(m *route.RouteMatch) bool {
	if len(m.Headers) > 0 || len(m.QueryParameters) > 0 || m.Grpc != nil || m.DynamicMetadata != nil {
		return false
	}
	switch p := m.PathSpecifier.(type) {
	case *route.RouteMatch_Prefix:
		return p.Prefix == "/"
	case *route.RouteMatch_SafeRegex:
		return p.SafeRegex.GetRegex() == ".*"
	}
	return false
}

// match translates the conditions on a request (Istio API: HTTPMatchRequest). All must hold; m may be nil.
func (b *routeBuilder) match(m *networking.HTTPMatchRequest, field string) *route.RouteMatch {
	out := matchAll()
	if m == nil {
		return out
	}
	switch u := m.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &route.RouteMatch_Prefix{Prefix: u.Prefix}
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &route.RouteMatch_Path{Path: u.Exact}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &route.RouteMatch_SafeRegex{SafeRegex: b.regex(u.Regex, field+".uri.regex")}
	}
	if _, regex := out.PathSpecifier.(*route.RouteMatch_SafeRegex); m.GetIgnoreUriCase() && !regex {
		out.CaseSensitive = no()
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetHeaders())) {
		out.Headers = append(out.Headers, b.header(name, m.GetHeaders()[name], field+".headers["+name+"]"))
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetWithoutHeaders())) {
		h := b.header(name, m.GetWithoutHeaders()[name], field+".withoutHeaders["+name+"]")
		h.InvertMatch = true
		if _, present := h.HeaderMatchSpecifier.(*route.HeaderMatcher_PresentMatch); !present {
			// Without this a request that lacks the header would not match (Envoy: HeaderMatcher.invert_match).
			h.TreatMissingHeaderAsEmpty = true
		}
		out.Headers = append(out.Headers, h)
	}
	for _, pseudo := range []struct {
		name, field string
		m           *networking.StringMatch
	}{{":method", "method", m.GetMethod()}, {":authority", "authority", m.GetAuthority()}, {":scheme", "scheme", m.GetScheme()}} {
		if pseudo.m != nil {
			out.Headers = append(out.Headers, b.header(pseudo.name, pseudo.m, field+"."+pseudo.field))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		out.QueryParameters = append(out.QueryParameters, b.query(name, m.GetQueryParams()[name], field+".queryParams["+name+"]"))
	}
	return out
}

// header matches one header; with an empty StringMatch, or "*" as a regex, any value will do.
func (b *routeBuilder) header(name string, m *networking.StringMatch, field string) *route.HeaderMatcher {
	out := &route.HeaderMatcher{Name: name}
	if s := b.stringMatch(m, field); s != nil {
		out.HeaderMatchSpecifier = &route.HeaderMatcher_StringMatch{StringMatch: s}
	} else {
		out.HeaderMatchSpecifier = &route.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return out
}

func (b *routeBuilder) query(name string, m *networking.StringMatch, field string) *route.QueryParameterMatcher {
	out := &route.QueryParameterMatcher{Name: name}
	if s := b.stringMatch(m, field); s != nil {
		out.QueryParameterMatchSpecifier = &route.QueryParameterMatcher_StringMatch{StringMatch: s}
	} else {
		out.QueryParameterMatchSpecifier = &route.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	}
	return out
}

// stringMatch is nil when any value matches.
func (b *routeBuilder) stringMatch(m *networking.StringMatch, field string) *matcher.StringMatcher {
	switch s := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: s.Exact}}
	case *networking.StringMatch_Prefix:
		if s.Prefix == "" {
			return nil
		}
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: s.Prefix}}
	case *networking.StringMatch_Regex:
		if s.Regex == "*" || s.Regex == ".*" {
			return nil
		}
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: b.regex(s.Regex, field+".regex")}}
	}
	return nil
}

// regex is RE2 on both sides; one that does not compile would make Envoy refuse all routes of the port.
func (b *routeBuilder) regex(expr, field string) *matcher.RegexMatcher {
	if _, err := regexp.Compile(expr); err != nil {
		b.wrong(field, fmt.Sprintf("is not an RE2 regular expression: %v. Correct it; until then the entry is left out", err))
	}
	return &matcher.RegexMatcher{Regex: expr}
}
