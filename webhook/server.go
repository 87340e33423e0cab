package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	meshconfig "istio.io/api/mesh/v1alpha1"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/mesh"
)

// maxBody is what the API server may send at most: etcd's limit for an object, twice (object and oldObject), and some.
const maxBody = 4 << 20

// annotationNotInjected tells a user, in the pod itself, why it has no proxy although somebody asked for one.
const annotationNotInjected = "weft.dev/not-injected"

// Server answers AdmissionReview v1 on /inject and below, and on /validate. As Istio's, it takes a pod that it is asked about as
// selected: the selectors of the MutatingWebhookConfiguration decide on namespaces. The listener, its certificate and the MutatingWebhookConfiguration are the
// caller's. It is safe for concurrent use.
type Server struct {
	in        atomic.Pointer[Injector]
	namespace func(string) (map[string]string, bool)
	discovery func(string) mesh.Discovery
	mesh      func() *meshconfig.MeshConfig
	log       *slog.Logger
	mux       http.ServeMux

	requests, success, skip, failure prometheus.Counter // Istio's metric names
	verdicts                         verdicts
	references                       References
}

// New prepares a Server. The error names the option at fault.
func New(c Config) (*Server, error) {
	in, err := NewInjector(c.Options)
	if err != nil {
		return nil, fmt.Errorf("injection: %w", err)
	}
	if c.Namespace == nil {
		return nil, errors.New("injection: Config.Namespace is nil: namespace labels decide who is injected")
	}
	s := &Server{namespace: c.Namespace, discovery: c.Discovery, mesh: c.Mesh, log: c.Log, verdicts: newVerdicts(), references: c.References}
	s.in.Store(in)
	if s.mesh == nil {
		s.mesh = func() *meshconfig.MeshConfig { return nil }
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	s.requests = counter("sidecar_injection_requests_total", "Total number of sidecar injection requests.")
	s.success = counter("sidecar_injection_success_total", "Total number of successful sidecar injection requests.")
	s.skip = counter("sidecar_injection_skip_total", "Total number of skipped sidecar injection requests.")
	s.failure = counter("sidecar_injection_failure_total", "Total number of failed sidecar injection requests.")
	s.mux.HandleFunc("/inject", s.inject)
	// Istio's MutatingWebhookConfigurations may append the cluster's name: /inject/cluster/east/net/n1.
	s.mux.HandleFunc("/inject/", s.inject)
	s.mux.HandleFunc("/validate", s.validate)
	return s, nil
}

// Injector returns what the server decides and injects with.
func (s *Server) Injector() *Injector { return s.in.Load() }

// Collectors are the server's metrics, under Istio's names.
func (s *Server) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.requests, s.success, s.skip, s.failure, s.verdicts.passed, s.verdicts.failed, s.verdicts.broken}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// inject is the HTTP side: what is not an AdmissionReview gets an HTTP error, everything else an answer with status 200.
func (s *Server) inject(w http.ResponseWriter, r *http.Request) {
	s.requests.Inc()
	review, status, err := readReview(w, r)
	if err != nil {
		s.failure.Inc()
		s.log.WarnContext(r.Context(), "injection request refused", "remote", r.RemoteAddr, "error", err)
		http.Error(w, err.Error(), status)
		return
	}
	s.answer(w, r, review, s.review(r.Context(), review.Request))
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, review *admissionv1.AdmissionReview, answer *admissionv1.AdmissionResponse) {
	answer.UID = review.Request.UID
	body, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: answer})
	if err != nil {
		s.log.ErrorContext(r.Context(), "admission answer cannot be written", "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // fails when the client is gone, and nobody is left to tell
}

func readReview(w http.ResponseWriter, r *http.Request) (*admissionv1.AdmissionReview, int, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, http.StatusMethodNotAllowed, fmt.Errorf("method %s: want POST with an AdmissionReview", r.Method)
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("Content-Type %q: want application/json", r.Header.Get("Content-Type"))
	}
	body, err := readAll(http.MaxBytesReader(w, r.Body, maxBody), r.ContentLength)
	if err != nil {
		if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
			return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("body: more than %d bytes", maxBody)
		}
		return nil, http.StatusBadRequest, fmt.Errorf("body: %w", err)
	}
	review := new(admissionv1.AdmissionReview)
	if err := json.Unmarshal(body, review); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("body is no AdmissionReview: %w", err)
	}
	if review.Kind != "AdmissionReview" || review.APIVersion != admissionv1.SchemeGroupVersion.String() {
		return nil, http.StatusBadRequest, fmt.Errorf("body is %s %s: want AdmissionReview %s (webhook field admissionReviewVersions: [v1])",
			review.Kind, review.APIVersion, admissionv1.SchemeGroupVersion)
	}
	if review.Request == nil {
		return nil, http.StatusBadRequest, errors.New("the AdmissionReview has no request")
	}
	return review, 0, nil
}

func readAll(r io.Reader, length int64) ([]byte, error) {
	if length <= 0 || length > maxBody {
		return io.ReadAll(r)
	}
	b := make([]byte, length)
	_, err := io.ReadFull(r, b)
	return b, err
}

// review is one request: a denial only for what the pod's author can and must mend.
func (s *Server) review(ctx context.Context, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	pass := func(d Decision) *admissionv1.AdmissionResponse {
		s.skip.Inc()
		return &admissionv1.AdmissionResponse{Allowed: true, Warnings: d.Warnings, AuditAnnotations: audit(d)}
	}
	if req.Resource.Group != "" || req.Resource.Resource != "pods" || req.SubResource != "" {
		return pass(Decision{Reason: NotAPod, Message: "only pods are injected, not " + req.Resource.Resource})
	}
	if req.Operation != admissionv1.Create {
		return pass(Decision{Reason: NotBeingCreated, Message: "pods are injected when they are created"})
	}
	deny := func(err error) *admissionv1.AdmissionResponse {
		s.failure.Inc()
		s.log.WarnContext(ctx, "pod denied", "namespace", req.Namespace, "pod", req.Name, "error", err)
		return denial(err)
	}
	pod := new(corev1.Pod)
	if err := json.Unmarshal(req.Object.Raw, pod); err != nil {
		return deny(fmt.Errorf("injection: the pod cannot be read: %w", err))
	}
	namespace := req.Namespace
	if namespace == "" {
		namespace = pod.Namespace
	}
	nsLabels, _ := s.namespace(namespace)
	in := s.in.Load()
	d := in.DecideSelected(pod, namespace, nsLabels)
	log := s.log.With("namespace", namespace, "pod", podName(pod), "reason", d.Reason)
	if !d.Inject {
		log.DebugContext(ctx, "pod not injected", "why", d.Message)
		answer := pass(d)
		if d.Unwanted {
			s.explain(answer, pod, d)
		}
		return answer
	}
	after, warnings, err := in.Inject(pod, namespace, s.mesh())
	if err != nil {
		return deny(fmt.Errorf("injection of pod %s/%s: %w", namespace, podName(pod), err))
	}
	if s.discovery != nil {
		settleDiscovery(after, s.discovery(namespace))
	}
	patch, err := podPatch(pod, after)
	if err != nil {
		return deny(fmt.Errorf("injection of pod %s/%s: %w", namespace, podName(pod), err))
	}
	s.success.Inc()
	log.DebugContext(ctx, "pod injected", "why", d.Message, "bytes", len(patch))
	answer := &admissionv1.AdmissionResponse{Allowed: true, Warnings: append(d.Warnings, warnings...), AuditAnnotations: audit(d)}
	if patch != nil {
		kind := admissionv1.PatchTypeJSONPatch
		answer.Patch, answer.PatchType = patch, &kind
	}
	return answer
}

// explain writes the reason into a pod that was meant to have a proxy and cannot.
func (s *Server) explain(answer *admissionv1.AdmissionResponse, pod *corev1.Pod, d Decision) {
	after := *pod
	after.Annotations = make(map[string]string, len(pod.Annotations)+1)
	for k, v := range pod.Annotations {
		after.Annotations[k] = v
	}
	after.Annotations[annotationNotInjected] = string(d.Reason) + ": " + d.Message
	patch, err := podPatch(pod, &after)
	if err != nil || patch == nil {
		return
	}
	kind := admissionv1.PatchTypeJSONPatch
	answer.Patch, answer.PatchType = patch, &kind
}

func audit(d Decision) map[string]string {
	return map[string]string{"injection": string(d.Reason)}
}

func denial(err error) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest, Message: err.Error(),
	}}
}

// podName is how people know a pod that has no name yet.
func podName(pod *corev1.Pod) string {
	if pod.Name != "" {
		return pod.Name
	}
	return pod.GenerateName + "*"
}
