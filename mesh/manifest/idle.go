package manifest

import "google.golang.org/protobuf/reflect/protoreflect"

// idleFields are fields of Istio's API that are read and checked, and that nothing acts on yet, by message. Whoever writes
// one must not believe that it is in force.
var idleFields = map[protoreflect.Name][]protoreflect.Name{
	"TrafficPolicy":               {"tunnel", "proxy_protocol"},
	"LoadBalancerSettings":        {"zone_aware_lb_setting"},
	"LocalityLoadBalancerSetting": {"failover_priority"},
	"OutlierDetection":            {"outlier_detection_http_error_codes"},
	"L4MatchAttributes":           {"source_subnet"},
	"ServerTLSSettings":           {"ca_cert_credential_name"},
	"Server":                      {"default_endpoint"},
	"Delay":                       {"exponential_delay"},
	"Abort":                       {"http2_error"},
}

// idle warns about every field of a message that has no effect, at any depth.
func (c *checker) idle(path string, m protoreflect.Message) {
	for _, name := range idleFields[m.Descriptor().Name()] {
		if f := m.Descriptor().Fields().ByName(name); f != nil && m.Has(f) {
			c.warn(at(path, ".%s", f.JSONName()), "has no effect in this version of weft")
		}
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) || f.IsMap() || f.Message() == nil || f.Message().FullName().Parent() == "google.protobuf" {
			continue
		}
		here := at(path, ".%s", f.JSONName())
		if !f.IsList() {
			c.idle(here, m.Get(f).Message())
			continue
		}
		list := m.Get(f).List()
		for j := range list.Len() {
			c.idle(at(here, "[%d]", j), list.Get(j).Message())
		}
	}
}
