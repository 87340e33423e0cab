package manifest

import (
	"fmt"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/weft-mesh/weft/mesh"
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
)

// validate applies the rules of a kind's documentation that its schema does not express. The object
// itself is all it looks at.
func validate(o runtime.Object) []mistake {
	c := &checker{}
	if why, ok := withoutEffect[o.GetObjectKind().GroupVersionKind().Kind]; ok {
		c.warn("", "%s", why)
	}
	if spec := mesh.SpecOf(o); spec != nil {
		c.idle("spec", spec.ProtoReflect())
	}
	switch spec := mesh.SpecOf(o).(type) {
	case *networking.VirtualService:
		c.virtualService(spec)
	case *networking.DestinationRule:
		c.destinationRule(spec)
	case *networking.Gateway:
		c.gateway(spec)
	case *networking.ServiceEntry:
		c.serviceEntry(spec)
	case *networking.Sidecar:
		c.sidecar(spec)
	}
	return c.mistakes
}

// Mistakes finds in a typed object of a kind what its documentation forbids and its schema cannot say, and whether it has no effect at all. It is
// for objects that did not come through Decode.
func Mistakes(kind string, o runtime.Object) (out []*Error) {
	if why, ok := withoutEffect[kind]; ok {
		out = append(out, &Error{Message: why})
	}
	for _, m := range validate(o) {
		if !m.warning {
			out = append(out, &Error{Field: m.field, Message: m.message})
		}
	}
	return out
}

// withoutEffect are kinds that are read and checked, and that nothing acts on yet. Nobody may believe that they are in force.
var withoutEffect = map[string]string{
	"AuthorizationPolicy":   "is NOT ENFORCED by this version of weft: what it denies is let through",
	"RequestAuthentication": "is NOT ENFORCED by this version of weft: tokens are not looked at",
	"EnvoyFilter":           "has no effect in this version of weft",
	"ProxyConfig":           "has no effect in this version of weft: use MeshConfig's defaultConfig or the pod annotation proxy.istio.io/config",
	"Sidecar":               "has no effect in this version of weft: proxies get everything that is visible to them",
	"Telemetry":             "has no effect in this version of weft: MeshConfig's accessLogFile turns access logs on",
	"TrafficExtension":      "has no effect in this version of weft",
	"WasmPlugin":            "has no effect in this version of weft",
	"WorkloadEntry":         "has no effect in this version of weft: write the endpoints into a ServiceEntry",
	"WorkloadGroup":         "has no effect in this version of weft",
}

// sidecar checks the hosts of a Sidecar (Istio API: Sidecar.egress[].hosts, "namespace/dnsName").
func (c *checker) sidecar(s *networking.Sidecar) {
	for i, e := range s.Egress {
		for j, host := range e.Hosts {
			path := at("spec", ".egress[%d].hosts[%d]", i, j)
			ns, name, ok := strings.Cut(host, "/")
			if !ok || ns == "" || name == "" {
				c.fail(path, "%q: write NAMESPACE/HOST, for example \"./%s\" for this namespace or \"*/%s\" for all", host, host, host)
				continue
			}
			c.host(path, name)
		}
	}
}

// checker collects mistakes. Its methods get the path of what they check.
type checker struct {
	mistakes []mistake
}

func (c *checker) fail(path, format string, args ...any) {
	c.mistakes = append(c.mistakes, mistake{field: path, message: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(path, format string, args ...any) {
	c.mistakes = append(c.mistakes, mistake{field: path, message: fmt.Sprintf(format, args...), warning: true})
}

func at(path, format string, args ...any) string { return path + fmt.Sprintf(format, args...) }

// host checks a host pattern: a DNS name, with a leading wildcard label perhaps, or an address.
func (c *checker) host(path, host string) {
	switch {
	case host == "":
		c.fail(path, "a host must not be empty")
		return
	case host == "*":
		return
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return
	}
	name := strings.TrimPrefix(host, "*.")
	if strings.Contains(name, "*") {
		c.fail(path, "%q: a wildcard may only stand for the first labels, as in \"*.example.com\"", host)
		return
	}
	name = strings.TrimSuffix(name, ".")
	for l := range strings.SplitSeq(strings.ToLower(name), ".") {
		if problems := validation.IsDNS1123Label(strings.ReplaceAll(l, "_", "-")); len(problems) > 0 {
			c.fail(path, "%q is not a host name: %s", host, first(problems))
			return
		}
	}
}

// hosts checks a list of host patterns.
func (c *checker) hosts(path string, hosts []string) {
	seen := map[string]bool{}
	for i, h := range hosts {
		p := at(path, "[%d]", i)
		c.host(p, h)
		if seen[h] {
			c.fail(p, "%q stands here a second time", h)
		}
		seen[h] = true
	}
}

// exportTo checks the namespaces of exportTo.
func (c *checker) exportTo(path string, list []string) {
	for i, e := range list {
		p := at(path, "[%d]", i)
		switch e {
		case ".", "*", "~":
			if len(list) > 1 && e != "." {
				c.fail(p, "%q must stand alone", e)
			}
		default:
			if problems := validation.IsDNS1123Label(e); len(problems) > 0 {
				c.fail(p, "%q is neither \".\" nor \"*\" nor a namespace: %s", e, first(problems))
			}
		}
	}
}

// regex checks a regular expression in the syntax of RE2, which is also Go's.
func (c *checker) regex(path, expr string) {
	if _, err := syntax.Parse(expr, syntax.Perl); err != nil {
		c.fail(path, "%q is not a regular expression in RE2 syntax: %v", expr, err)
	}
}

// stringMatch checks one condition. Empty values would match everything by accident.
func (c *checker) stringMatch(path string, m *networking.StringMatch) {
	switch t := m.GetMatchType().(type) {
	case *networking.StringMatch_Regex:
		if t.Regex == "" {
			c.fail(path+".regex", "an empty expression matches only the empty text; leave the condition out instead")
			return
		}
		c.regex(path+".regex", t.Regex)
	case *networking.StringMatch_Prefix:
		if t.Prefix == "" {
			c.warn(path+".prefix", "an empty prefix matches everything")
		}
	}
}

var headerName = regexp.MustCompile(`^:?[-!#$%&'*+.^_|~0-9A-Za-z` + "`" + `]+$`)

func (c *checker) headerName(path, name string) {
	if !headerName.MatchString(name) {
		c.fail(path, "%q cannot be a header's name", name)
	}
}

func (c *checker) percent(path string, p *networking.Percent) {
	if p != nil && (p.Value < 0 || p.Value > 100) {
		c.fail(path+".value", "%v is not between 0 and 100", p.Value)
	}
}
