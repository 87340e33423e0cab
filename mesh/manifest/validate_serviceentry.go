package manifest

import (
	"net/netip"
	"strings"

	"github.com/weft-mesh/weft/mesh"
	networking "istio.io/api/networking/v1alpha3"
)

// serviceEntry follows Istio's API reference, ServiceEntry.
func (c *checker) serviceEntry(e *networking.ServiceEntry) {
	c.hosts("spec.hosts", e.Hosts)
	c.exportTo("spec.exportTo", e.ExportTo)
	for i, h := range e.Hosts {
		p := at("spec.hosts", "[%d]", i)
		if h == "*" {
			c.fail(p, "\"*\" would take over every host; name the domain, as in \"*.example.com\"")
		}
		if strings.HasPrefix(h, "*") && e.Resolution == networking.ServiceEntry_DNS && len(e.Endpoints) == 0 {
			c.fail(p, "%q cannot be resolved: a wildcard needs endpoints, or resolution NONE", h)
		}
	}
	for i, a := range e.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			if _, err := netip.ParsePrefix(a); err != nil {
				c.fail(at("spec.addresses", "[%d]", i), "%q is neither an address nor a CIDR", a)
			}
		}
	}
	names := map[string]bool{}
	for i, p := range e.Ports {
		path := at("spec.ports", "[%d]", i)
		if p.Name == "" {
			c.fail(path+".name", "required field is missing")
		}
		if names[p.Name] {
			c.fail(path+".name", "%q is the name of another port already", p.Name)
		}
		names[p.Name] = true
		if p.Protocol != "" && mesh.ParseProtocol(p.Protocol) == mesh.ProtocolAuto {
			c.fail(path+".protocol", "%q is not a protocol: use one of %s", p.Protocol, strings.Join(gatewayProtocols, ", "))
		}
	}
	if len(e.Endpoints) > 0 && e.Resolution == networking.ServiceEntry_NONE {
		c.fail("spec.endpoints", "with resolution NONE clients choose the address themselves: use STATIC or DNS, or leave the endpoints out")
	}
	for i, p := range e.Endpoints {
		path := at("spec.endpoints", "[%d]", i)
		_, err := netip.ParseAddr(p.Address)
		if e.Resolution == networking.ServiceEntry_STATIC && err != nil && !strings.HasPrefix(p.Address, "unix://") {
			c.fail(path+".address", "%q is not an address; names need resolution DNS", p.Address)
		}
		for name := range p.Ports {
			if !names[name] {
				c.fail(path+".ports", "%q is not the name of a port in spec.ports", name)
			}
		}
	}
}
