package manifest

import (
	"math"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// virtualService follows Istio's API reference, VirtualService.
func (c *checker) virtualService(vs *networking.VirtualService) {
	c.hosts("spec.hosts", vs.Hosts)
	c.exportTo("spec.exportTo", vs.ExportTo)
	delegate := len(vs.Hosts) == 0
	inMesh := len(vs.Gateways) == 0
	for _, g := range vs.Gateways {
		inMesh = inMesh || g == "mesh"
	}
	switch {
	case delegate && (len(vs.Tcp) > 0 || len(vs.Tls) > 0):
		c.fail("spec.hosts", "at least one host is required; only a delegate, which has just http routes, goes without")
	case delegate && len(vs.Gateways) > 0:
		c.fail("spec.gateways", "a delegate (without hosts) takes the gateways of the VirtualService that refers to it")
	case len(vs.Http) == 0 && len(vs.Tcp) == 0 && len(vs.Tls) == 0:
		c.fail("spec", "no routes: http, tcp or tls is required")
	}
	if inMesh {
		for i, h := range vs.Hosts {
			if h == "*" {
				c.fail(at("spec.hosts", "[%d]", i), "\"*\" is for gateways; in the mesh it would take over every host")
			}
		}
	}
	all := -1
	for i, r := range vs.Http {
		path := at("spec.http", "[%d]", i)
		if all >= 0 {
			c.warn(path, "never reached: http[%d] matches every request", all)
		}
		c.httpRoute(path, r, delegate)
		if catchesAll(r) && all < 0 {
			all = i
		}
	}
	for i, r := range vs.Tls {
		c.tlsRoute(at("spec.tls", "[%d]", i), r, vs.Hosts)
	}
	for i, r := range vs.Tcp {
		path := at("spec.tcp", "[%d]", i)
		c.destinations(path, len(r.Route), func(j int) (*networking.Destination, int32) { return r.Route[j].Destination, r.Route[j].Weight })
		if i < len(vs.Tcp)-1 && len(r.Match) == 0 {
			c.warn(at("spec.tcp", "[%d]", i+1), "never reached: tcp[%d] matches every connection", i)
			break
		}
	}
}

// catchesAll reports whether no later route can get a request.
func catchesAll(r *networking.HTTPRoute) bool {
	if len(r.Match) == 0 {
		return true
	}
	for _, m := range r.Match {
		p, prefix := m.Uri.GetMatchType().(*networking.StringMatch_Prefix)
		if prefix && (p.Prefix == "/" || p.Prefix == "") && m.Scheme == nil && m.Method == nil && m.Authority == nil && len(m.Headers) == 0 &&
			len(m.WithoutHeaders) == 0 && len(m.QueryParams) == 0 && len(m.SourceLabels) == 0 && m.SourceNamespace == "" && m.Port == 0 && len(m.Gateways) == 0 {
			return true
		}
	}
	return false
}

func (c *checker) httpRoute(path string, r *networking.HTTPRoute, inDelegate bool) {
	var does []string
	for name, set := range map[string]bool{"route": len(r.Route) > 0, "redirect": r.Redirect != nil, "directResponse": r.DirectResponse != nil, "delegate": r.Delegate != nil} {
		if set {
			does = append(does, name)
		}
	}
	switch {
	case len(does) == 0:
		c.fail(path, "does nothing: one of route, redirect, directResponse, delegate is required")
	case len(does) > 1:
		c.fail(path, "route, redirect, directResponse and delegate exclude each other")
	}
	if r.Delegate != nil {
		if inDelegate {
			c.fail(path+".delegate", "a delegate must not delegate again")
		}
		if r.Delegate.Name == "" {
			c.fail(path+".delegate.name", "the name of a VirtualService is required")
		}
	}
	for i, m := range r.Match {
		c.httpMatch(at(path, ".match[%d]", i), m)
	}
	c.destinations(path, len(r.Route), func(i int) (*networking.Destination, int32) { return r.Route[i].Destination, r.Route[i].Weight })
	for i, d := range r.Route {
		c.headers(at(path, ".route[%d].headers", i), d.Headers)
	}
	c.headers(path+".headers", r.Headers)
	if r.Redirect != nil {
		c.redirect(path, r)
	}
	if d := r.DirectResponse; d != nil && (d.Status < 200 || d.Status > 599) {
		c.fail(path+".directResponse.status", "%d is not an HTTP status between 200 and 599", d.Status)
	}
	if w := r.Rewrite; w != nil {
		if r.Redirect != nil || r.DirectResponse != nil {
			c.fail(path+".rewrite", "nothing is forwarded here that could be rewritten")
		}
		if w.Uri == "" && w.Authority == "" && w.UriRegexRewrite == nil {
			c.fail(path+".rewrite", "uri, uriRegexRewrite or authority is required")
		}
		if w.Uri != "" && w.UriRegexRewrite != nil {
			c.fail(path+".rewrite", "uri and uriRegexRewrite exclude each other")
		}
		if w.UriRegexRewrite != nil {
			c.regex(path+".rewrite.uriRegexRewrite.match", w.UriRegexRewrite.Match)
		}
	}
	c.fault(path+".fault", r.Fault)
	c.retries(path, r)
	if r.Mirror != nil && len(r.Mirrors) > 0 {
		c.fail(path+".mirrors", "mirror and mirrors exclude each other")
	}
	if r.Mirror != nil {
		c.destination(path+".mirror", r.Mirror)
	}
	for i, m := range r.Mirrors {
		c.destination(at(path, ".mirrors[%d].destination", i), m.Destination)
		c.percent(at(path, ".mirrors[%d].percentage", i), m.Percentage)
	}
	c.percent(path+".mirrorPercentage", r.MirrorPercentage)
	if r.MirrorPercent != nil { //nolint:staticcheck // an old name that must still be accepted
		c.warn(path+".mirrorPercent", "deprecated: write mirrorPercentage: {value: ...}")
	}
}

func (c *checker) redirect(path string, r *networking.HTTPRoute) {
	d := r.Redirect
	if d.Uri == "" && d.Authority == "" && d.Scheme == "" && d.RedirectCode == 0 && d.RedirectPort == nil {
		c.fail(path+".redirect", "uri, authority, port, scheme or redirectCode is required")
	}
	if d.RedirectCode != 0 && (d.RedirectCode < 300 || d.RedirectCode > 399) {
		c.fail(path+".redirect.redirectCode", "%d is not a redirection: use 301, 302, 303, 307 or 308", d.RedirectCode)
	}
	if r.Fault != nil {
		c.fail(path+".fault", "faults are not injected into redirects")
	}
}

func (c *checker) httpMatch(path string, m *networking.HTTPMatchRequest) {
	if m == nil {
		c.fail(path, "a match must not be null: write {} or leave it out")
		return
	}
	for name, s := range map[string]*networking.StringMatch{"uri": m.Uri, "scheme": m.Scheme, "method": m.Method, "authority": m.Authority} {
		if s != nil {
			c.stringMatch(path+"."+name, s)
		}
	}
	for name, s := range m.Headers {
		p := at(path, ".headers[%s]", name)
		c.headerName(p, name)
		c.stringMatch(p, s)
	}
	for name, s := range m.WithoutHeaders {
		p := at(path, ".withoutHeaders[%s]", name)
		c.headerName(p, name)
		c.stringMatch(p, s)
	}
	for name, s := range m.QueryParams {
		p := at(path, ".queryParams[%s]", name)
		c.stringMatch(p, s)
	}
}

// destinations checks the targets of a route and their weights. Weights are proportions; with a sum of 100 they are
// what people mean.
func (c *checker) destinations(path string, n int, get func(int) (*networking.Destination, int32)) {
	var sum int64
	for i := range n {
		p := at(path, ".route[%d]", i)
		d, weight := get(i)
		c.destination(p+".destination", d)
		if weight < 0 {
			c.fail(p+".weight", "%d is negative", weight)
		}
		sum += int64(weight)
	}
	switch {
	case n > 1 && sum == 0:
		c.fail(path+".route", "all weights are 0: nothing would be routed")
	case sum > math.MaxUint32:
		c.fail(path+".route", "the weights add up to %d, more than Envoy takes", sum)
	case n > 1 && sum != 100:
		c.warn(path+".route", "the weights add up to %d, not to 100: they are taken as proportions", sum)
	}
}

func (c *checker) destination(path string, d *networking.Destination) {
	switch {
	case d == nil:
		c.fail(path, "a destination is required")
	case d.Host == "*":
		c.fail(path+".host", "traffic cannot be sent to \"*\"")
	default:
		c.host(path+".host", d.Host)
	}
}

func (c *checker) headers(path string, h *networking.Headers) {
	if h == nil {
		return
	}
	for side, ops := range map[string]*networking.Headers_HeaderOperations{"request": h.Request, "response": h.Response} {
		for name := range ops.GetSet() {
			c.headerName(at(path, ".%s.set[%s]", side, name), name)
		}
		for name := range ops.GetAdd() {
			c.headerName(at(path, ".%s.add[%s]", side, name), name)
		}
		for i, name := range ops.GetRemove() {
			p := at(path, ".%s.remove[%d]", side, i)
			c.headerName(p, name)
			if strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
				c.fail(p, "%s cannot be removed", name)
			}
		}
	}
}

func (c *checker) fault(path string, f *networking.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.Delay == nil && f.Abort == nil {
		c.fail(path, "delay or abort is required")
	}
	if d := f.Delay; d != nil {
		c.percent(path+".delay.percentage", d.Percentage)
		if d.GetHttpDelayType() == nil {
			c.fail(path+".delay.fixedDelay", "required field is missing")
		}
		switch {
		case d.Percent != 0: //nolint:staticcheck // an old name that must still be accepted
			c.warn(path+".delay.percent", "deprecated: write percentage: {value: ...}")
		case d.Percentage == nil:
			c.warn(path+".delay", "without percentage no request is delayed")
		}
	}
	if a := f.Abort; a != nil {
		c.percent(path+".abort.percentage", a.Percentage)
		if a.Percentage == nil {
			c.warn(path+".abort", "without percentage no request is aborted")
		}
		switch t := a.ErrorType.(type) {
		case nil:
			c.fail(path+".abort", "httpStatus or grpcStatus is required")
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			if t.HttpStatus < 200 || t.HttpStatus > 599 {
				c.fail(path+".abort.httpStatus", "%d is not an HTTP status between 200 and 599", t.HttpStatus)
			}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if !grpcStatus(t.GrpcStatus) {
				c.fail(path+".abort.grpcStatus", "%q is not the name of a gRPC status, as in UNAVAILABLE", t.GrpcStatus)
			}
		}
	}
}

var grpcStatusNames = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

func grpcStatus(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 0 && n < len(grpcStatusNames)
	}
	for _, n := range grpcStatusNames {
		if s == n {
			return true
		}
	}
	return false
}

// retryConditions are the words of x-envoy-retry-on and x-envoy-retry-grpc-on; besides them a status code may stand.
var retryConditions = []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
	"refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

func (c *checker) retries(path string, r *networking.HTTPRoute) {
	t := r.Retries
	if t == nil {
		return
	}
	if t.Attempts < 0 {
		c.fail(path+".retries.attempts", "%d is negative", t.Attempts)
	}
	if t.Attempts == 0 && (t.PerTryTimeout != nil || t.RetryOn != "" || t.RetryRemoteLocalities != nil) {
		c.warn(path+".retries", "attempts is 0: nothing is retried, the other fields have no effect")
	}
	if t.RetryOn != "" {
		for word := range strings.SplitSeq(t.RetryOn, ",") {
			word = strings.TrimSpace(word)
			if n, err := strconv.Atoi(word); err == nil && n >= 100 && n <= 599 {
				continue
			}
			known := false
			for _, k := range retryConditions {
				known = known || k == word
			}
			if known {
				continue
			}
			if n := Nearest(word, retryConditions); n != "" {
				c.fail(path+".retries.retryOn", "%q is not a retry condition; did you mean %q?", word, n)
			} else {
				c.fail(path+".retries.retryOn", "%q is not a retry condition; known are %s, and HTTP status codes", word, strings.Join(retryConditions, ", "))
			}
		}
	}
	if r.Timeout != nil && t.PerTryTimeout != nil && r.Timeout.AsDuration() > 0 && t.PerTryTimeout.AsDuration() > r.Timeout.AsDuration() {
		c.warn(path+".retries.perTryTimeout", "longer than the route's timeout of %v, which ends the request first", r.Timeout.AsDuration())
	}
}

func (c *checker) tlsRoute(path string, r *networking.TLSRoute, hosts []string) {
	if len(r.Match) == 0 {
		c.fail(path+".match", "required field is missing: TLS is routed by SNI")
	}
	for i, m := range r.Match {
		p := at(path, ".match[%d].sniHosts", i)
		if len(m.GetSniHosts()) == 0 {
			c.fail(p, "at least one host is required")
		}
		for j, s := range m.GetSniHosts() {
			q := at(p, "[%d]", j)
			c.host(q, s)
			if !coveredBy(s, hosts) {
				c.fail(q, "%q is not covered by spec.hosts (%s)", s, strings.Join(hosts, ", "))
			}
		}
	}
	c.destinations(path, len(r.Route), func(i int) (*networking.Destination, int32) { return r.Route[i].Destination, r.Route[i].Weight })
	if len(r.Route) == 0 {
		c.fail(path+".route", "at least one destination is required")
	}
}

// coveredBy reports whether one of the patterns contains host, which may be a pattern itself.
func coveredBy(host string, patterns []string) bool {
	for _, p := range patterns {
		if p == host || p == "*" || strings.HasPrefix(p, "*") && strings.HasSuffix(host, p[1:]) {
			return true
		}
	}
	return false
}
