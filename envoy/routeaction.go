package envoy

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	fault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	networking "istio.io/api/networking/v1alpha3"
)

// Redirect codes that Envoy can send.
var redirectCodes = map[uint32]route.RedirectAction_RedirectResponseCode{
	0:                            route.RedirectAction_MOVED_PERMANENTLY,
	http.StatusMovedPermanently:  route.RedirectAction_MOVED_PERMANENTLY,
	http.StatusFound:             route.RedirectAction_FOUND,
	http.StatusSeeOther:          route.RedirectAction_SEE_OTHER,
	http.StatusTemporaryRedirect: route.RedirectAction_TEMPORARY_REDIRECT,
	http.StatusPermanentRedirect: route.RedirectAction_PERMANENT_REDIRECT,
}

// redirect (Istio API: HTTPRedirect). A port that is the scheme's own is not printed in the location.
func (b *routeBuilder) redirect(in *networking.HTTPRedirect) *route.RedirectAction {
	out := &route.RedirectAction{HostRedirect: in.GetAuthority()}
	if in.GetPrefixRewrite() != "" {
		out.PathRewriteSpecifier = &route.RedirectAction_PrefixRewrite{PrefixRewrite: in.GetPrefixRewrite()}
	} else if in.GetUri() != "" {
		out.PathRewriteSpecifier = &route.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	}
	code, ok := redirectCodes[in.GetRedirectCode()]
	if !ok {
		b.wrong(".redirect.redirectCode", fmt.Sprintf("%d is no redirect that Envoy can send; use 301, 302, 303, 307 or 308", in.GetRedirectCode()))
	}
	out.ResponseCode = code
	scheme := "http"
	if b.at.secure {
		scheme = "https"
	}
	if s := in.GetScheme(); s != "" {
		scheme = s
		out.SchemeRewriteSpecifier = &route.RedirectAction_SchemeRedirect{SchemeRedirect: s}
	}
	port := uint32(0)
	switch p := in.GetRedirectPort().(type) {
	case *networking.HTTPRedirect_Port:
		port = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			port = uint32(b.at.port)
		}
	}
	natural := scheme == "http" && port == 80 || scheme == "https" && port == 443
	if port != 0 && !(natural && in.GetAuthority() != "") {
		out.PortRedirect = port
	}
	return out
}

func directResponse(in *networking.HTTPDirectResponse) *route.DirectResponseAction {
	out := &route.DirectResponseAction{Status: in.GetStatus()}
	switch body := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: body.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: body.Bytes}}
	}
	return out
}

func (b *routeBuilder) rewrite(a *route.RouteAction, in *networking.HTTPRewrite) {
	if in == nil {
		return
	}
	if r := in.GetUriRegexRewrite(); r != nil {
		a.RegexRewrite = &matcher.RegexMatchAndSubstitute{
			Pattern:      b.regex(r.GetMatch(), ".rewrite.uriRegexRewrite.match"),
			Substitution: r.GetRewrite(),
		}
	} else if in.GetUri() != "" {
		a.PrefixRewrite = in.GetUri()
	}
	if in.GetAuthority() != "" {
		a.HostRewriteSpecifier = &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: in.GetAuthority()}
	}
}

func (b *routeBuilder) mirrors(a *route.RouteAction, h *networking.HTTPRoute) {
	add := func(d *networking.Destination, p *networking.Percent, old uint32, field string) {
		percent := 100.0
		if p != nil {
			percent = p.GetValue()
		} else if old > 0 {
			percent = float64(old)
		}
		if percent <= 0 {
			return
		}
		name, _ := b.destination(b.vs.Ref, b.field+field, d, b.at)
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &route.RouteAction_RequestMirrorPolicy{
			Cluster:         name,
			RuntimeFraction: runtimeFraction(percent),
			TraceSampled:    no(),
		})
	}
	if m := h.GetMirror(); m != nil {
		add(m, h.GetMirrorPercentage(), h.GetMirrorPercent().GetValue(), ".mirror") //nolint:staticcheck // old manifests
	}
	for i, m := range h.GetMirrors() {
		add(m.GetDestination(), m.GetPercentage(), 0, ".mirrors["+strconv.Itoa(i)+"].destination")
	}
}

// defaultRetryOn are Istio's conditions and one more: the connection ended before the request was on it. All of them mean that the app has
// not seen the request, or (gRPC) says itself that it has not done it. An app's own 503 is an answer.
const defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled,reset-before-request"

// What nearly all retry policies say.
var (
	retryUndelivered = []*route.HeaderMatcher{{
		Name:                 undelivered,
		HeaderMatchSpecifier: &route.HeaderMatcher_PresentMatch{PresentMatch: true},
	}}
	retryElsewhere = []*route.RetryPolicy_RetryHostPredicate{{
		Name: "previous_hosts", // Envoy goes by the type; this is said in each virtual host
		ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{
			TypedConfig: anyOf(&previoushosts.PreviousHostsPredicate{}),
		},
	}}
)

// retryPolicy is nil when nothing is retried. Retries avoid hosts that were tried, unless a hash binds requests to one host.
func (b *routeBuilder) retryPolicy(in *networking.HTTPRetry, hashed bool) *route.RetryPolicy {
	attempts := uint32(2) // Istio's default, for a MeshConfig without a policy
	if in != nil {
		if in.GetAttempts() <= 0 {
			return nil
		}
		attempts = uint32(in.GetAttempts())
	}
	out := &route.RetryPolicy{
		NumRetries:                    u32(attempts),
		HostSelectionRetryMaxAttempts: 5,
		PerTryTimeout:                 in.GetPerTryTimeout(),
	}
	on := in.GetRetryOn()
	if on == "" {
		on = b.mesh().GetDefaultHttpRetryPolicy().GetRetryOn()
	}
	if on == "" {
		on = defaultRetryOn
	}
	out.RetryOn, out.RetriableStatusCodes = retryOn(on)
	if conditions := strings.Split(out.RetryOn, ","); slices.Contains(conditions, "connect-failure") {
		// The connection that fails when an app is gone is the one behind the server's sidecar.
		if !slices.Contains(conditions, "retriable-headers") {
			out.RetryOn += ",retriable-headers"
		}
		out.RetriableHeaders = retryUndelivered
	}
	if ignore := in.GetRetryIgnorePreviousHosts(); ignore.GetValue() || ignore == nil && !hashed {
		out.RetryHostPredicate = retryElsewhere
	}
	if in.GetRetryRemoteLocalities().GetValue() {
		out.RetryPriority = &route.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &route.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: anyOf(&previouspriorities.PreviousPrioritiesConfig{UpdateFrequency: 2}),
			},
		}
	}
	if d := in.GetBackoff(); d.AsDuration() > 0 {
		out.RetryBackOff = &route.RetryPolicy_RetryBackOff{BaseInterval: d}
	}
	return out
}

// retryOn splits status codes from conditions: "503,reset" means the conditions "reset,retriable-status-codes" and code 503.
func retryOn(list string) (conditions string, statuses []uint32) {
	var names []string
	for _, s := range strings.Split(list, ",") {
		s = strings.TrimSpace(s)
		if n, err := strconv.ParseUint(s, 10, 16); err == nil && n >= 100 && n < 600 {
			statuses = append(statuses, uint32(n))
		} else if s != "" {
			names = append(names, s)
		}
	}
	if len(statuses) > 0 && !slices.Contains(names, "retriable-status-codes") {
		names = append(names, "retriable-status-codes")
	}
	return strings.Join(names, ","), statuses
}

// fault is nil when nothing is injected: a percentage is needed (Istio API: HTTPFaultInjection).
func (b *routeBuilder) fault(in *networking.HTTPFaultInjection) *fault.HTTPFault {
	out := &fault.HTTPFault{}
	if d := in.GetDelay(); d != nil {
		percent := float64(d.GetPercent()) //nolint:staticcheck // old manifests
		if d.GetPercentage() != nil {
			percent = d.GetPercentage().GetValue()
		}
		if fixed := d.GetFixedDelay(); percent > 0 && fixed.AsDuration() > 0 {
			out.Delay = &commonfault.FaultDelay{
				FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: fixed},
				Percentage:         fraction(percent),
			}
		}
	}
	if a := in.GetAbort(); a.GetPercentage().GetValue() > 0 {
		out.Abort = &fault.FaultAbort{Percentage: fraction(a.GetPercentage().GetValue())}
		switch e := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			if e.HttpStatus < 200 || e.HttpStatus > 599 {
				b.wrong(".fault.abort.httpStatus", fmt.Sprintf("%d is no HTTP status that can be answered; use 200 to 599", e.HttpStatus))
			}
			out.Abort.ErrorType = &fault.FaultAbort_HttpStatus{HttpStatus: uint32(e.HttpStatus)}
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			code, ok := grpcCode(e.GrpcStatus)
			if !ok {
				b.wrong(".fault.abort.grpcStatus", fmt.Sprintf("%q is no gRPC status; use a name such as UNAVAILABLE", e.GrpcStatus))
			}
			out.Abort.ErrorType = &fault.FaultAbort_GrpcStatus{GrpcStatus: code}
		default:
			out.Abort = nil
		}
	}
	if out.Delay == nil && out.Abort == nil {
		return nil
	}
	return out
}

// grpcCode understands "UNAVAILABLE" and "14".
func grpcCode(s string) (uint32, bool) {
	if n, err := strconv.ParseUint(s, 10, 5); err == nil {
		return uint32(n), n <= 16
	}
	var c codes.Code
	if err := c.UnmarshalJSON([]byte(strconv.Quote(s))); err != nil {
		return 0, false
	}
	return uint32(c), true
}

func (b *routeBuilder) cors(in *networking.CorsPolicy) *cors.CorsPolicy {
	out := &cors.CorsPolicy{
		AllowMethods:     strings.Join(in.GetAllowMethods(), ","),
		AllowHeaders:     strings.Join(in.GetAllowHeaders(), ","),
		ExposeHeaders:    strings.Join(in.GetExposeHeaders(), ","),
		AllowCredentials: in.GetAllowCredentials(),
		FilterEnabled:    runtimeFraction(100),
	}
	if in.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatInt(in.GetMaxAge().GetSeconds(), 10)
	}
	if in.GetUnmatchedPreflights() == networking.CorsPolicy_IGNORE {
		out.ForwardNotMatchingPreflights = no()
	}
	for i, o := range in.GetAllowOrigins() {
		m := b.stringMatch(o, ".corsPolicy.allowOrigins["+strconv.Itoa(i)+"]")
		if m == nil {
			m = &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: ".*"}}}
		}
		if m.GetExact() == "*" {
			m = &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: ".*"}}}
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	for _, o := range in.GetAllowOrigin() { //nolint:staticcheck // old manifests
		m := &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: o}}
		if o == "*" {
			m = &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: ".*"}}}
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	return out
}

// A headerTarget is where header operations of one level go.
type headerTarget struct {
	addRequest     *[]*core.HeaderValueOption
	removeRequest  *[]string
	addResponse    *[]*core.HeaderValueOption
	removeResponse *[]string
}

// headers applies set (overwrite), add (append) and remove. It returns the authority when a request header operation sets it: Envoy
// changes that only through the route.
func (b *routeBuilder) headers(in *networking.Headers, field string, to headerTarget) (authority string) {
	add := func(into *[]*core.HeaderValueOption, values map[string]string, action core.HeaderValueOption_HeaderAppendAction, field string) {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if isAuthority(name) {
				continue
			}
			if strings.HasPrefix(name, ":") {
				b.wrong(field+"["+name+"]", "pseudo headers cannot be set; use rewrite")
				continue
			}
			if err := checkFormat(values[name]); err != nil {
				b.wrong(field+"["+name+"]", err.Error())
			}
			*into = append(*into, &core.HeaderValueOption{
				Header:         &core.HeaderValue{Key: name, Value: values[name]},
				AppendAction:   action,
				KeepEmptyValue: values[name] == "",
			})
		}
	}
	remove := func(into *[]string, names []string, field string) {
		for _, n := range names {
			if strings.HasPrefix(n, ":") || strings.EqualFold(n, "host") {
				b.wrong(field, fmt.Sprintf("header %q cannot be removed", n))
				continue
			}
			*into = append(*into, n)
		}
	}
	const overwrite, appendTo = core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD, core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
	add(to.addRequest, in.GetRequest().GetSet(), overwrite, field+".request.set")
	add(to.addRequest, in.GetRequest().GetAdd(), appendTo, field+".request.add")
	remove(to.removeRequest, in.GetRequest().GetRemove(), field+".request.remove")
	add(to.addResponse, in.GetResponse().GetSet(), overwrite, field+".response.set")
	add(to.addResponse, in.GetResponse().GetAdd(), appendTo, field+".response.add")
	remove(to.removeResponse, in.GetResponse().GetRemove(), field+".response.remove")
	return authorityOf(in.GetRequest().GetSet())
}

func isAuthority(name string) bool { return name == ":authority" || strings.EqualFold(name, "host") }

func authorityOf(set map[string]string) string {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if isAuthority(name) {
			return set[name]
		}
	}
	return ""
}

// hashPolicies binds requests to hosts as the destination's consistentHash says; nil when it says nothing.
func hashPolicies(p policy) []*route.RouteAction_HashPolicy {
	hash := p.lb.GetConsistentHash()
	if hash == nil {
		return nil
	}
	out := &route.RouteAction_HashPolicy{}
	switch k := hash.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		out.PolicySpecifier = &route.RouteAction_HashPolicy_Header_{Header: &route.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		c := &route.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.GetName(), Path: k.HttpCookie.GetPath(), Ttl: k.HttpCookie.GetTtl()}
		for _, a := range k.HttpCookie.GetAttributes() {
			c.Attributes = append(c.Attributes, &route.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		out.PolicySpecifier = &route.RouteAction_HashPolicy_Cookie_{Cookie: c}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		out.PolicySpecifier = &route.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &route.RouteAction_HashPolicy_ConnectionProperties{SourceIp: k.UseSourceIp},
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		out.PolicySpecifier = &route.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &route.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName},
		}
	default:
		return nil
	}
	return []*route.RouteAction_HashPolicy{out}
}

func compactHash(in []*route.RouteAction_HashPolicy) []*route.RouteAction_HashPolicy {
	return slices.CompactFunc(in, func(a, b *route.RouteAction_HashPolicy) bool { return proto.Equal(a, b) })
}
