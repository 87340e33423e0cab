// Package webhook is admission: it decides whether a pod gets a proxy, and adds it.
//
// It knows Istio's rules of injection (decision.go), what users may set by annotations (annotations.go), how the app's probes
// keep working (probes.go), and how the templates of package templates are filled in and merged (injector.go). The decision
// and the injection are pure functions of pod, namespace labels and mesh configuration, so the server (server.go), weft
// kube-inject and weft check-inject cannot disagree. With the CNI plugin it shares one thing: redirect.Spec, written into one annotation.
//
// It never talks to the API server, keeps nothing between requests but prepared templates, and never lets text from an
// annotation become a field. Start with injector.go.
package webhook
