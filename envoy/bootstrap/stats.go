package bootstrap

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// What Istio's bootstrap keeps of Envoy's statistics: a sidecar has some hundred per cluster, and most are never looked at.
// Istio users add more with proxyStatsMatcher. Each that is kept makes a start dearer: it goes through
// the tags below, which are std::regex.
//
// Envoy's health_check filter reads the gauges membership_total and membership_healthy, and answers 503 for ever when they are
// filtered out. So those of the clusters that it looks at are among them: of TCP and gRPC probes, and of the redirect proof
// (package envoy, proof.go, has the names). No more of these clusters is: they were half of all statistics, and 4 ms of a
// start's 80 (docs/performance.md).
var (
	keptPrefixes = []string{"cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "cluster.app-probe|tcp|", "cluster.app-probe|grpc|",
		"cluster.redirect-proof-v4.membership_", "cluster.redirect-proof-v6.membership_", "wasm", "istio", "component"}
	keptSuffixes = []string{"rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied", "downstream_cx_active"}
)

// statsTags split cluster and listener names out of statistic names, so that a Prometheus query by cluster_name works as it
// does for Istio. (Istio's tag for Mongo is missing: no filter of ours has such statistics.) The first group of an expression
// is cut out of the name, the second is the tag's value. DOMAIN is the cluster domain, because a host's dots belong to its name.
var statsTags = []statsTag{
	{"cluster_name", `^cluster\.((.+?(\..+?\.svc\.DOMAIN)?)\.)`},
	{"tcp_prefix", `^tcp\.((.*?)\.)\w+?$`},
	{"http_conn_manager_listener_prefix", `^listener\..*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
	{"http_conn_manager_prefix", `^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
	{"listener_address", `^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
}

// codeTags split off what was answered. No word at the start of a name says that they can't fit, as with the others, so std::regex tries
// every character of every statistic: half of what our bootstrap adds to Envoy's start (docs/performance.md). So they are there only
// where somebody added statistics: of those that Istio keeps, the control plane's cluster alone counts answers.
var codeTags = []statsTag{
	{"response_code", `_rq(_(\d{3}))$`},
	{"response_code_class", `_rq(_(\dxx))$`},
}

type statsTag struct{ name, regex string }

// statsConfig refuses expressions that Envoy would refuse at start.
func statsConfig(s Settings) (*metricsv3.StatsConfig, error) {
	split := statsTags
	if len(s.Stats.Prefixes)+len(s.Stats.Suffixes)+len(s.Stats.Regexps) > 0 {
		split = slices.Concat(statsTags, codeTags)
	}
	var tags []*metricsv3.TagSpecifier
	domain := regexp.QuoteMeta(s.ClusterDomain)
	for _, t := range split {
		regex := dollars(strings.ReplaceAll(t.regex, "DOMAIN", domain))
		tags = append(tags, &metricsv3.TagSpecifier{TagName: t.name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: regex}})
	}
	var patterns []*matcherv3.StringMatcher
	for _, p := range slices.Concat(keptPrefixes, s.Stats.Prefixes) {
		patterns = append(patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: dollars(p)}})
	}
	for _, p := range slices.Concat(keptSuffixes, s.Stats.Suffixes) {
		patterns = append(patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: dollars(p)}})
	}
	for _, p := range s.Stats.Regexps {
		if _, err := regexp.Compile(p); err != nil {
			return nil, fmt.Errorf("stats inclusion regexp %q: %w", p, err)
		}
		patterns = append(patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: dollars(p)}}})
	}
	return &metricsv3.StatsConfig{
		UseAllDefaultTags: wrapperspb.Bool(false),
		StatsTags:         tags,
		StatsMatcher: &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{
			InclusionList: &matcherv3.ListStringMatcher{Patterns: patterns},
		}},
	}, nil
}
