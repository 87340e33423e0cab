package mesh

import (
	"fmt"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// Discovery is how a sidecar learns of the services that its app may use.
type Discovery string

const (
	// Eager sidecars are told everything that their namespace sees.
	Eager Discovery = "eager"
	// OnDemand sidecars are told what their workload has asked for.
	OnDemand Discovery = "on-demand"

	// DefaultDiscovery is that of sidecars for which nobody has chosen.
	DefaultDiscovery = OnDemand
)

const (
	// DiscoveryAnnotation chooses for a pod or, as annotation or label, for the pods of a namespace. The injector writes it
	// on each pod that it gives a sidecar, so that a choice of the namespace or the mesh is that of new pods.
	DiscoveryAnnotation = "weft.dev/discovery"
	// DiscoveryVariable chooses for the mesh: MeshConfig.defaultConfig.proxyMetadata.
	DiscoveryVariable = "WEFT_DISCOVERY"

	discoveryField = "defaultConfig.proxyMetadata." + DiscoveryVariable
)

// ParseDiscovery reads a choice as a user writes it: "eager" or "on-demand".
func ParseDiscovery(text string) (Discovery, error) {
	switch d := Discovery(text); d {
	case Eager, OnDemand:
		return d, nil
	}
	const most = 100
	if len(text) > most {
		text = text[:most] + "..."
	}
	return "", fmt.Errorf("%q is neither %s nor %s", text, Eager, OnDemand)
}

// DiscoveryOf is the choice for new pods of a namespace, nil when it is not known: its annotation, or else its label, or
// else the mesh's. What is no choice counts as none; who wrote it is told by [Snapshot.Problems].
func DiscoveryOf(ns *Namespace, mesh *meshconfig.MeshConfig) Discovery {
	if ns != nil {
		for _, from := range []map[string]string{ns.Annotations, ns.Labels} {
			if d, err := ParseDiscovery(from[DiscoveryAnnotation]); err == nil {
				return d
			}
		}
	}
	if d, err := ParseDiscovery(mesh.GetDefaultConfig().GetProxyMetadata()[DiscoveryVariable]); err == nil {
		return d
	}
	return DefaultDiscovery
}

// OnDemand reports whether the workload's sidecar is told only what the workload asks for. The pod's annotation decides, which is there
// from the pod's creation; without one, the namespace and the mesh. Gateways are always told everything, and so is who has no pod.
func (s *Snapshot) OnDemand(w *Workload) bool {
	if w == nil {
		return false
	}
	if w.discovery != "" {
		return w.discovery == OnDemand
	}
	return DiscoveryOf(s.Namespace(w.Namespace), s.Mesh()) == OnDemand
}

// chosenDiscovery is what a pod's annotations say; empty when they say nothing.
func chosenDiscovery(annotations map[string]string) Discovery {
	if IsGateway(annotations) {
		return Eager
	}
	d, _ := ParseDiscovery(annotations[DiscoveryAnnotation]) // what is wrong is a Problem already
	return d
}

// discoveryProblems are those of what a pod or namespace says about discovery in its annotation and its label. Labels of pods say nothing.
func discoveryProblems(meta *Meta) []Problem {
	instead := "the mesh"
	if meta.Kind == "Pod" {
		instead = "the namespace"
	}
	var problems []Problem
	text, ok := meta.Annotations[DiscoveryAnnotation]
	if ok {
		if _, err := ParseDiscovery(text); err != nil {
			problems = append(problems, Problem{meta.Ref, "metadata.annotations[" + DiscoveryAnnotation + "]",
				fmt.Sprintf("%v: write one of them; until then %s decides", err, instead)})
		}
	}
	label, labeled := meta.Labels[DiscoveryAnnotation]
	if meta.Kind != "Namespace" || !labeled {
		return problems
	}
	if _, err := ParseDiscovery(label); err != nil {
		problems = append(problems, Problem{meta.Ref, "metadata.labels[" + DiscoveryAnnotation + "]",
			fmt.Sprintf("%v: write one of them; until then %s decides", err, instead)})
	} else if ok && text != label {
		problems = append(problems, Problem{meta.Ref, "metadata.labels[" + DiscoveryAnnotation + "]",
			fmt.Sprintf("the annotation of the same name says %q and wins: remove one of them", text)})
	}
	return problems
}
