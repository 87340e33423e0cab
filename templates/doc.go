// Package templates says what is added to a pod: the sidecar and the gateway (sidecar.yaml, gateway.yaml), and users' own
// templates in the same format.
//
// A template is a YAML tree in the shape of a Pod. It is parsed and checked against corev1.Pod once, when it is loaded; only
// its string leaves are evaluated, with typed values, when a pod is injected. A leaf that is one expression takes the value's
// own type; text around an expression makes a string. So whatever a value holds, it is one leaf: no annotation of a user can
// ever add a field. The result is merged into the user's pod by the rules of a strategic merge patch.
//
//	${proxy.image}                    a value; the field is left out when there is none
//	docker.io/${team}/envoy           text with a value in it
//	${annotations[example.com/x]:-no} the pod's annotation (or ${labels[...]}), with a default
//	$${literal}                       the text ${literal}
//	$if: ${value}                     in a mapping: the mapping exists only when the value is neither absent, "", false, 0 nor empty
//	$unless: ${value}                 the opposite
//
// In a list, an expression whose value is a list is spliced in. Kubelet's $(VAR) is not touched.
//
// This package never looks at annotations itself and decides nothing: package webhook computes the values. Start with
// template.go, then merge.go.
package templates
