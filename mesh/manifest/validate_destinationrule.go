package manifest

import (
	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// destinationRule follows Istio's API reference, DestinationRule.
func (c *checker) destinationRule(r *networking.DestinationRule) {
	c.host("spec.host", r.Host)
	c.exportTo("spec.exportTo", r.ExportTo)
	c.trafficPolicy("spec.trafficPolicy", r.TrafficPolicy)
	seen := map[string]int{}
	for i, s := range r.Subsets {
		path := at("spec.subsets", "[%d]", i)
		if problems := validation.IsDNS1123Label(s.Name); len(problems) > 0 {
			c.fail(path+".name", "%q cannot be the name of a subset: %s", s.Name, first(problems))
		}
		if first, twice := seen[s.Name]; twice {
			c.fail(path+".name", "%q is the name of subsets[%d] already", s.Name, first)
		}
		seen[s.Name] = i
		c.trafficPolicy(path+".trafficPolicy", s.TrafficPolicy)
	}
	if r.WorkloadSelector != nil && len(r.WorkloadSelector.MatchLabels) > 0 {
		c.warn("spec.workloadSelector", "not supported yet: this rule has no effect")
	}
}

func (c *checker) trafficPolicy(path string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	c.loadBalancer(path+".loadBalancer", p.LoadBalancer)
	c.outlierDetection(path+".outlierDetection", p.OutlierDetection)
	c.clientTLS(path+".tls", p.Tls)
	seen := map[uint32]bool{}
	for i, s := range p.PortLevelSettings {
		q := at(path, ".portLevelSettings[%d]", i)
		switch n := s.Port.GetNumber(); {
		case n == 0:
			c.fail(q+".port.number", "required field is missing")
		case seen[n]:
			c.fail(q+".port.number", "port %d has settings already", n)
		default:
			seen[n] = true
		}
		c.loadBalancer(q+".loadBalancer", s.LoadBalancer)
		c.outlierDetection(q+".outlierDetection", s.OutlierDetection)
		c.clientTLS(q+".tls", s.Tls)
	}
}

func (c *checker) loadBalancer(path string, lb *networking.LoadBalancerSettings) {
	if lb == nil {
		return
	}
	if lb.GetSimple() == networking.LoadBalancerSettings_LEAST_CONN { //nolint:staticcheck // an old name that must still be accepted
		c.warn(path+".simple", "LEAST_CONN is the old name of LEAST_REQUEST")
	}
	if h := lb.GetConsistentHash(); h != nil {
		if h.HashKey == nil {
			c.fail(path+".consistentHash", "one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName is required")
		}
		if cookie := h.GetHttpCookie(); cookie != nil && cookie.Name == "" {
			c.fail(path+".consistentHash.httpCookie.name", "required field is missing")
		}
		if h.MinimumRingSize != 0 { //nolint:staticcheck // an old name that must still be accepted
			c.warn(path+".consistentHash.minimumRingSize", "deprecated: write ringHash: {minimumRingSize: ...}")
		}
		if isSourceIP(h) && !h.GetUseSourceIp() {
			c.fail(path+".consistentHash.useSourceIp", "false chooses nothing: set it to true or choose another key")
		}
	}
	if l := lb.LocalityLbSetting; l != nil {
		n := 0
		for _, set := range []bool{len(l.Distribute) > 0, len(l.Failover) > 0} {
			if set {
				n++
			}
		}
		if n > 1 {
			c.fail(path+".localityLbSetting", "distribute and failover exclude each other")
		}
		for i, d := range l.Distribute {
			var sum uint64
			for _, w := range d.To {
				sum += uint64(w)
			}
			if sum != 100 {
				c.fail(at(path, ".localityLbSetting.distribute[%d].to", i), "the weights add up to %d; they must add up to 100", sum)
			}
		}
	}
}

func isSourceIP(h *networking.LoadBalancerSettings_ConsistentHashLB) bool {
	_, ok := h.HashKey.(*networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp)
	return ok
}

func (c *checker) outlierDetection(path string, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	if o.ConsecutiveErrors != 0 { //nolint:staticcheck // an old name that must still be accepted
		c.warn(path+".consecutiveErrors", "has no effect: write consecutive5xxErrors (or consecutiveGatewayErrors for 502, 503 and 504 only)")
	}
	for name, v := range map[string]int32{"maxEjectionPercent": o.MaxEjectionPercent, "minHealthPercent": o.MinHealthPercent} {
		if v < 0 || v > 100 {
			c.fail(path+"."+name, "%d is not between 0 and 100", v)
		}
	}
	if o.SplitExternalLocalOriginErrors && o.ConsecutiveLocalOriginFailures.GetValue() == 0 && o.ConsecutiveLocalOriginFailures != nil {
		c.warn(path+".consecutiveLocalOriginFailures", "0 turns the detection of local origin failures off")
	}
}

func (c *checker) clientTLS(path string, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	own := t.ClientCertificate != "" || t.PrivateKey != "" || t.CaCertificates != ""
	switch t.Mode {
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		if own || t.CredentialName != "" {
			c.fail(path, "with ISTIO_MUTUAL the mesh's own certificates are used: clientCertificate, privateKey, caCertificates and credentialName must be empty")
		}
	case networking.ClientTLSSettings_MUTUAL:
		switch {
		case t.CredentialName != "" && own:
			c.fail(path, "credentialName excludes clientCertificate, privateKey and caCertificates")
		case t.CredentialName == "" && (t.ClientCertificate == "" || t.PrivateKey == ""):
			c.fail(path, "with MUTUAL either credentialName or both clientCertificate and privateKey are required")
		}
	case networking.ClientTLSSettings_SIMPLE:
		if t.CredentialName == "" && t.CaCertificates == "" && t.InsecureSkipVerify.GetValue() {
			c.warn(path+".insecureSkipVerify", "the server's certificate is not verified")
		}
	}
}
