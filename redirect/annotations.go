package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Istio's annotations that change a Spec (Istio API: resource annotations, traffic.sidecar.istio.io/*).
const (
	AnnotationInterceptionMode      = "sidecar.istio.io/interceptionMode"
	AnnotationIncludeInboundPorts   = "traffic.sidecar.istio.io/includeInboundPorts"
	AnnotationExcludeInboundPorts   = "traffic.sidecar.istio.io/excludeInboundPorts"
	AnnotationIncludeOutboundCIDRs  = "traffic.sidecar.istio.io/includeOutboundIPRanges"
	AnnotationExcludeOutboundCIDRs  = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	AnnotationIncludeOutboundPorts  = "traffic.sidecar.istio.io/includeOutboundPorts"
	AnnotationExcludeOutboundPorts  = "traffic.sidecar.istio.io/excludeOutboundPorts"
	AnnotationExcludeInterfaces     = "traffic.sidecar.istio.io/excludeInterfaces"
	AnnotationRerouteInterfaces     = "istio.io/reroute-virtual-interfaces"
	AnnotationKubevirtInterfaces    = "traffic.sidecar.istio.io/kubevirtInterfaces" // the older name of the one above
	annotationWildcard              = "*"
	remedyPorts                     = `want port numbers from 1 to 65535 with commas between them`
	remedyInterfaces                = `want interface names with commas between them`
	remedyIncludeNothingInsteadPort = `"*" cannot be excluded; set ` + AnnotationIncludeInboundPorts + `: "" to capture no inbound port`
)

// annotation says what one annotation's value does to a Spec.
type annotation struct {
	name  string
	apply func(s *Spec, value string) error
}

// annotations are in the order in which they are applied; the newer name of the rerouted interfaces is last, and wins.
var annotations = []annotation{
	{AnnotationInterceptionMode, func(s *Spec, v string) error {
		switch m := Mode(strings.TrimSpace(v)); m {
		case Redirect, TProxy, None:
			s.Mode = m
			return nil
		}
		return fmt.Errorf("not an interception mode, want %s, %s or %s", Redirect, TProxy, None)
	}},
	{AnnotationIncludeInboundPorts, func(s *Spec, v string) (err error) {
		if strings.TrimSpace(v) == annotationWildcard {
			s.IncludeInboundPorts = AllPorts()
			return nil
		}
		list, err := parsePorts(v)
		s.IncludeInboundPorts = OnlyPorts(list...)
		return err
	}},
	{AnnotationExcludeInboundPorts, func(s *Spec, v string) (err error) {
		if strings.TrimSpace(v) == annotationWildcard {
			return errors.New(remedyIncludeNothingInsteadPort)
		}
		s.ExcludeInboundPorts, err = parsePorts(v)
		return err
	}},
	{AnnotationIncludeOutboundCIDRs, func(s *Spec, v string) error {
		if strings.TrimSpace(v) == annotationWildcard {
			s.IncludeOutboundCIDRs = AllCIDRs()
			return nil
		}
		list, err := parseCIDRs(v)
		s.IncludeOutboundCIDRs = OnlyCIDRs(list...)
		return err
	}},
	{AnnotationExcludeOutboundCIDRs, func(s *Spec, v string) (err error) {
		s.ExcludeOutboundCIDRs, err = parseCIDRs(v)
		return err
	}},
	{AnnotationIncludeOutboundPorts, func(s *Spec, v string) (err error) {
		s.IncludeOutboundPorts, err = parsePorts(v)
		return err
	}},
	{AnnotationExcludeOutboundPorts, func(s *Spec, v string) (err error) {
		s.ExcludeOutboundPorts, err = parsePorts(v)
		return err
	}},
	{AnnotationExcludeInterfaces, func(s *Spec, v string) (err error) {
		s.ExcludeInterfaces, err = parseInterfaces(v)
		return err
	}},
	{AnnotationKubevirtInterfaces, func(s *Spec, v string) (err error) {
		s.RerouteInterfaces, err = parseInterfaces(v)
		return err
	}},
	{AnnotationRerouteInterfaces, func(s *Spec, v string) (err error) {
		s.RerouteInterfaces, err = parseInterfaces(v)
		return err
	}},
}

// FromAnnotations changes base (usually Default with the mesh's settings) as the pod's annotations say, and validates the result.
// An annotation that is present replaces base's list, also when it is empty: as in Istio, includeInboundPorts: "" captures no
// inbound port. Each error names the annotation, its value and what to write instead; all that are wrong are reported together.
func FromAnnotations(base Spec, pod map[string]string) (Spec, error) {
	s := base.normalized()
	var errs []error
	for _, a := range annotations {
		value, ok := pod[a.name]
		if !ok {
			continue
		}
		if err := a.apply(&s, value); err != nil {
			errs = append(errs, fmt.Errorf("annotation %s: value %s: %w", a.name, quote(value), err))
		}
	}
	if len(errs) > 0 {
		return Spec{}, errors.Join(errs...)
	}
	if err := s.Validate(); err != nil {
		return Spec{}, fmt.Errorf("redirection that the pod's annotations ask for: %w", err)
	}
	return s.normalized(), nil
}

// list splits at commas; spaces around an item are allowed, empty items too (Istio writes "15020," when nothing follows).
func list(value string) []string {
	var out []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

func parsePorts(value string) ([]uint16, error) {
	var out []uint16
	for _, item := range list(value) {
		n, err := strconv.ParseUint(item, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%s is not a port, %s", quote(item), remedyPorts)
		}
		out = append(out, uint16(n))
	}
	return out, nil
}

func parseCIDRs(value string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, item := range list(value) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			if a, notAddr := netip.ParseAddr(item); notAddr == nil && a.Zone() == "" {
				return nil, fmt.Errorf("%s has no prefix length, write %s/%d for this one address", quote(item), a, a.BitLen())
			}
			return nil, fmt.Errorf("%s is not a CIDR range, want ranges such as 10.0.0.0/8 or fd00::/8 with commas between them", quote(item))
		}
		if err := checkCIDR(p); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func parseInterfaces(value string) ([]string, error) {
	out := list(value)
	for _, name := range out {
		if err := checkInterface(name); err != nil {
			return nil, fmt.Errorf("%w, %s", err, remedyInterfaces)
		}
	}
	return out, nil
}
