package install

import (
	"fmt"
	"strings"
)

// addGateway makes one gateway a release of the gateway chart. values.gateways.istio-ingressgateway is for all ingress
// gateways, values.gateways.istio-egressgateway for all egress gateways, as in istioctl; the gateway's own k8s wins.
func (p *Plan) addGateway(component string, i int, g Gateway, shared Tree) error {
	list, all := "ingressGateways", "istio-ingressgateway"
	if component == Egress {
		list, all = "egressGateways", "istio-egressgateway"
	}
	if g.Name == "" {
		if !on(g.Enabled) {
			return nil
		}
		return fmt.Errorf("spec.components.%s[%d]: name is missing", list, i)
	}
	v, _ := get(shared, "gateways", all)
	common := asTree(v)
	if said, ok := common["enabled"].(bool); ok && g.Name == all && g.Enabled == nil {
		g.Enabled = &said // Helm's way of switching it on or off
	}
	if !on(g.Enabled) {
		return nil
	}
	out, warnings := gatewayValues(common)
	for _, key := range warnings {
		p.Warnings = append(p.Warnings, fmt.Sprintf("values.gateways.%s.%s has no effect: the gateway chart has no such value", all, key))
	}
	out = merge(gatewayDefaults(component), out)
	out = merge(out, g.values())
	out["global"] = clone(shared["global"])
	if g.Hub != "" || g.Tag != "" {
		global := asTree(out["global"])
		if g.Hub != "" {
			global["hub"] = g.Hub
		}
		if g.Tag != "" {
			global["tag"] = g.Tag
		}
	}
	if p.Revision != "" {
		out["revision"] = p.Revision
	}
	ns := g.Namespace
	if ns == "" {
		ns = p.Namespace
	}
	r := Release{Component: component, Chart: "gateway", Name: g.Name, Namespace: ns, Values: out}
	if err := p.add(r, g.K8s, target{"Deployment", g.Name, "istio-proxy"}); err != nil {
		return err
	}
	added := &p.Releases[len(p.Releases)-1]
	if rest := serviceRest(g.K8s); len(rest) > 0 {
		added.patches = append(added.patches, objectPatch{kind: "Service", name: g.Name, patch: Tree{"spec": rest}})
	}
	return nil
}

// gatewayDefaults are IstioOperator's, where they differ from the chart's: the gateway listens above 1024, so that
// `proxy-config routes --name http.8080` and the like are what Istio's documentation shows.
func gatewayDefaults(component string) Tree {
	port := func(name string, port, target int64) Tree {
		return Tree{"name": name, "port": port, "targetPort": target, "protocol": "TCP"}
	}
	ports := []any{port("status-port", 15021, 15021), port("http2", 80, 8080), port("https", 443, 8443)}
	if component == Egress {
		return Tree{"service": Tree{"type": "ClusterIP", "ports": ports[1:]}}
	}
	return Tree{"service": Tree{"ports": ports}}
}

// gatewayValues translates values.gateways.istio-*gateway, of Istio's older charts, into those of the gateway chart. Keys that
// it knows nothing of are returned.
func gatewayValues(old Tree) (Tree, []string) {
	out := Tree{}
	var unknown []string
	same := map[string][]string{
		"autoscaleEnabled":         {"autoscaling", "enabled"},
		"autoscaleMin":             {"autoscaling", "minReplicas"},
		"autoscaleMax":             {"autoscaling", "maxReplicas"},
		"autoscaleBehavior":        {"autoscaling", "autoscaleBehavior"},
		"replicaCount":             {"replicaCount"},
		"resources":                {"resources"},
		"env":                      {"env"},
		"labels":                   {"labels"},
		"nodeSelector":             {"nodeSelector"},
		"tolerations":              {"tolerations"},
		"affinity":                 {"affinity"},
		"podAnnotations":           {"podAnnotations"},
		"priorityClassName":        {"priorityClassName"},
		"type":                     {"service", "type"},
		"ports":                    {"service", "ports"},
		"loadBalancerIP":           {"service", "loadBalancerIP"},
		"loadBalancerSourceRanges": {"service", "loadBalancerSourceRanges"},
		"externalTrafficPolicy":    {"service", "externalTrafficPolicy"},
		"externalIPs":              {"service", "externalIPs"},
		"ipFamilies":               {"service", "ipFamilies"},
		"ipFamilyPolicy":           {"service", "ipFamilyPolicy"},
		"serviceAnnotations":       {"service", "annotations"},
		"imagePullPolicy":          {"imagePullPolicy"},
		"securityContext":          {"securityContext"},
	}
	for _, key := range sortedKeys(old) {
		v := old[key]
		switch path, ok := same[key]; {
		case ok:
			if !empty(v) {
				put(out, clone(v), path...)
			}
		case key == "cpu" || key == "memory":
			if u, ok := get(asTree(v), "targetAverageUtilization"); ok {
				put(out, u, "autoscaling", "target"+strings.ToUpper(key[:1])+key[1:]+"UtilizationPercentage")
			}
		case key == "name" || key == "enabled" || key == "namespace" || empty(v):
		default:
			unknown = append(unknown, key)
		}
	}
	return out, unknown
}

// values are the gateway's own settings, as values of the gateway chart.
func (g Gateway) values() Tree {
	s := &values{}
	k := g.K8s
	s.say(g.Label, "labels")
	s.say(k.Resources, "resources")
	s.say(k.ReplicaCount, "replicaCount")
	if h := k.HPASpec; h != nil {
		s.say(true, "autoscaling", "enabled")
		s.say(h.MinReplicas, "autoscaling", "minReplicas")
		if h.MaxReplicas > 0 {
			s.say(h.MaxReplicas, "autoscaling", "maxReplicas")
		}
		s.say(h.utilization("cpu"), "autoscaling", "targetCPUUtilizationPercentage")
		s.say(h.utilization("memory"), "autoscaling", "targetMemoryUtilizationPercentage")
		s.say(h.Behavior, "autoscaling", "autoscaleBehavior")
	} else if k.ReplicaCount != nil {
		s.say(false, "autoscaling", "enabled")
	}
	s.env(k.Env)
	s.say(k.NodeSelector, "nodeSelector")
	s.say(k.Tolerations, "tolerations")
	s.say(k.Affinity, "affinity")
	s.say(k.TopologySpread, "topologySpreadConstraints")
	s.say(k.PodAnnotations, "podAnnotations")
	s.say(k.PodDisruptionBudget, "podDisruptionBudget")
	s.say(k.ServiceAnnotations, "service", "annotations")
	if svc := k.Service; svc != nil {
		s.say(string(svc.Type), "service", "type")
		s.say(svc.Ports, "service", "ports")
		s.say(svc.LoadBalancerIP, "service", "loadBalancerIP")
		s.say(svc.LoadBalancerSourceRanges, "service", "loadBalancerSourceRanges")
		s.say(string(svc.ExternalTrafficPolicy), "service", "externalTrafficPolicy")
		s.say(svc.ExternalIPs, "service", "externalIPs")
		s.say(svc.IPFamilies, "service", "ipFamilies")
		s.say(svc.IPFamilyPolicy, "service", "ipFamilyPolicy")
	}
	return s.tree
}

// serviceRest is what of a gateway's k8s.service the chart has no value for.
func serviceRest(k K8s) Tree {
	if k.Service == nil {
		return nil
	}
	s := &values{}
	s.say(k.Service, ".")
	return without(asTree(s.tree["."]), "type", "ports", "loadBalancerIP", "loadBalancerSourceRanges", "externalTrafficPolicy", "externalIPs", "ipFamilies", "ipFamilyPolicy")
}
