package install

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Component names, as istioctl prints them.
const (
	Base    = "Istio core"
	Pilot   = "Istiod"
	CNI     = "CNI"
	Ingress = "Ingress gateways"
	Egress  = "Egress gateways"
)

// Release is one Helm release of a plan.
type Release struct {
	Component string
	Chart     string // of package deploy
	Name      string
	Namespace string
	Values    Tree
	patches   []objectPatch
	overlays  []Overlay
}

// Plan is what shall be in the cluster: releases in the order in which they are installed.
type Plan struct {
	*Wanted
	Releases []Release
}

// NewPlan translates what is wanted into Helm releases. Values that the charts have are given as values, so that `helm get
// values` shows them and Helm's users can go on; what charts have no value for becomes a patch of the objects.
func NewPlan(w *Wanted) (*Plan, error) {
	p := &Plan{Wanted: w}
	c := w.Spec.Components
	shared := w.sharedValues()
	if on(c.Base.Enabled) {
		r := w.release(Base, "base", "istio-base", pick(shared, "global", "base", "defaultRevision"))
		if err := p.add(r, c.Base.K8s, target{}); err != nil {
			return nil, err
		}
	}
	if on(c.Pilot.Enabled) {
		values := without(shared, "cni", "gateways", "gateway", "base", "ztunnel", "defaultRevision", "istio_cni")
		values["pilot"] = merge(asTree(values["pilot"]), pilotValues(c.Pilot))
		if w.Revision != "" {
			values["revision"] = w.Revision
		}
		name := "istiod" + suffix(w.Revision)
		r := w.release(Pilot, "istiod", name, values)
		if err := p.add(r, c.Pilot.K8s, target{"Deployment", name, "discovery"}); err != nil {
			return nil, err
		}
	}
	if on(c.CNI.Enabled) || on(c.Pilot.Enabled) {
		values := pick(shared, "global", "cni")
		values["cni"] = merge(asTree(values["cni"]), cniValues(c.CNI))
		delete(values["cni"].(Tree), "enabled")
		r := w.release(CNI, "cni", "istio-cni", values)
		if err := p.add(r, c.CNI.K8s, target{"DaemonSet", "weft-node", "install-cni"}); err != nil {
			return nil, err
		}
	}
	for _, list := range []struct {
		component string
		gateways  []Gateway
	}{{Ingress, c.IngressGateways}, {Egress, c.EgressGateways}} {
		for i, g := range list.gateways {
			if err := p.addGateway(list.component, i, g, shared); err != nil {
				return nil, err
			}
		}
	}
	seen := map[string]string{}
	for _, r := range p.Releases {
		key := r.Namespace + "/" + r.Name
		if other, twice := seen[key]; twice {
			return nil, fmt.Errorf("%s and %s would both be Helm release %s: give the gateway another name", other, r.Component, key)
		}
		seen[key] = r.Component
	}
	return p, nil
}

func (w *Wanted) release(component, chart, name string, values Tree) Release {
	return Release{Component: component, Chart: chart, Name: name, Namespace: w.Namespace, Values: values}
}

// add completes a release with what is not a value, and appends it.
func (p *Plan) add(r Release, k K8s, t target) error {
	patches, err := k.patches(t)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Component, err)
	}
	r.patches, r.overlays = patches, k.Overlays
	p.Releases = append(p.Releases, r)
	return nil
}

// sharedValues are the Helm values that the user gave, with what IstioOperator says elsewhere put where the charts look.
func (w *Wanted) sharedValues() Tree {
	v := merge(w.Spec.Values, w.Spec.UnvalidatedValues)
	global := merge(nil, asTree(v["global"])) // hub and tag unsaid are the chart's: those of this release
	if w.Spec.Hub != "" {
		global["hub"] = w.Spec.Hub
	}
	if w.Spec.Tag != "" {
		global["tag"] = w.Spec.Tag
	}
	global["istioNamespace"] = w.Namespace
	v["global"] = global
	if len(w.Spec.MeshConfig) > 0 {
		v["meshConfig"] = merge(asTree(v["meshConfig"]), w.Spec.MeshConfig)
	}
	delete(v, "revision")
	if old, ok := v["istio_cni"]; ok { // its name in istiod's old values
		v["cni"] = merge(asTree(old), asTree(v["cni"]))
	}
	return v
}

// Revisioned is the revision with "default" for none.
func (w *Wanted) Revisioned() string { return cmp.Or(w.Revision, "default") }

// suffix of the names of a revision's objects.
func suffix(revision string) string {
	if revision == "" || revision == "default" {
		return ""
	}
	return "-" + revision
}

// pick copies some keys.
func pick(t Tree, keys ...string) Tree {
	out := Tree{}
	for _, k := range keys {
		if v, ok := t[k]; ok {
			out[k] = clone(v)
		}
	}
	return out
}

// without copies all but some keys.
func without(t Tree, keys ...string) Tree {
	out := clone(t).(Tree)
	maps.DeleteFunc(out, func(k string, _ any) bool { return slices.Contains(keys, k) })
	return out
}

func asTree(v any) Tree {
	t, _ := v.(Tree)
	return t
}
