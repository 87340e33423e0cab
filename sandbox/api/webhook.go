package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/weft-mesh/weft/sandbox/store"
)

// Webhook calls the mutating admission webhooks that are configured in the
// store, as kube-apiserver does: HTTPS to the Service's ClusterIP, the server
// verified as NAME.NAMESPACE.svc, AdmissionReview v1, JSON patch.
type Webhook struct {
	// Root gives the PEM bundle for configurations without a caBundle: the mesh root, once it exists.
	Root func() []byte
}

// Admit sends a new pod through every webhook whose rules and selectors match, in
// order of name. The error is what a user of kubectl would see.
func (w *Webhook) Admit(ctx context.Context, s *store.Store, pod *corev1.Pod) (*corev1.Pod, error) {
	for _, o := range store.List[*unstructured.Unstructured](s, "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", nil) {
		var conf admissionregistrationv1.MutatingWebhookConfiguration
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &conf); err != nil {
			return nil, apierrors.NewInternalError(fmt.Errorf("MutatingWebhookConfiguration %s: %w", o.GetName(), err))
		}
		for i := range conf.Webhooks {
			hook := &conf.Webhooks[i]
			match, err := wants(s, hook, pod)
			if err != nil {
				return nil, apierrors.NewInternalError(fmt.Errorf("MutatingWebhookConfiguration %s: webhook %s: %w", conf.Name, hook.Name, err))
			}
			if !match {
				continue
			}
			changed, err := w.call(ctx, s, hook, pod)
			var denied *apierrors.StatusError
			switch {
			case errors.As(err, &denied):
				return nil, err
			case err != nil && hook.FailurePolicy != nil && *hook.FailurePolicy == admissionregistrationv1.Ignore:
				continue
			case err != nil:
				return nil, apierrors.NewInternalError(fmt.Errorf("failed calling webhook %q: %w", hook.Name, err))
			}
			pod = changed
		}
	}
	return pod, nil
}

// wants reports whether the webhook asked for this pod (Kubernetes:
// rules, namespaceSelector, objectSelector).
func wants(s *store.Store, hook *admissionregistrationv1.MutatingWebhook, pod *corev1.Pod) (bool, error) {
	asked := false
	for _, r := range hook.Rules {
		asked = asked || (has(r.Operations, admissionregistrationv1.Create) && has(r.APIGroups, "") && has(r.Resources, "pods"))
	}
	if !asked {
		return false, nil
	}
	var nsLabels labels.Set
	if ns := s.Get(store.Key{Resource: "namespaces", Name: pod.Namespace}); ns != nil {
		nsLabels = ns.GetLabels()
	}
	for _, m := range []struct {
		sel *metav1.LabelSelector
		set labels.Set
	}{{hook.NamespaceSelector, nsLabels}, {hook.ObjectSelector, pod.Labels}} {
		if m.sel == nil {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(m.sel)
		if err != nil {
			return false, err
		}
		if !sel.Matches(m.set) {
			return false, nil
		}
	}
	return true, nil
}

func has[T ~string](list []T, want T) bool {
	for _, v := range list {
		if v == want || v == "*" {
			return true
		}
	}
	return false
}

func (w *Webhook) call(ctx context.Context, s *store.Store, hook *admissionregistrationv1.MutatingWebhook, pod *corev1.Pod) (*corev1.Pod, error) {
	timeout := 10 * time.Second
	if hook.TimeoutSeconds != nil {
		timeout = time.Duration(*hook.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, target, err := w.client(s, hook)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()

	plain := pod.DeepCopy()
	plain.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	raw, err := json.Marshal(plain)
	if err != nil {
		return nil, err
	}
	uid := uuid.NewUUID()
	gvk := metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}
	gvr := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	review := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: uid, Kind: gvk, Resource: gvr, RequestKind: &gvk, RequestResource: &gvr,
			Name: pod.Name, Namespace: pod.Namespace, Operation: admissionv1.Create,
			Object: runtime.RawExtension{Raw: raw}, DryRun: ptr(false),
			Options: runtime.RawExtension{Raw: []byte(`{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}`)},
		},
	}
	review.Request.UserInfo.Username = "system:serviceaccount:kube-system:sandbox"
	body, err := json.Marshal(review)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("failed to call webhook: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the webhook answered %s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	return applyAnswer(ctx, hook.Name, uid, pod, raw, answer)
}

func applyAnswer(ctx context.Context, name string, uid types.UID, pod *corev1.Pod, raw, answer []byte) (*corev1.Pod, error) {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &review); err != nil {
		return nil, fmt.Errorf("the webhook's answer is not an AdmissionReview: %w", err)
	}
	r := review.Response
	if r == nil || r.UID != uid {
		return nil, errors.New("the webhook's answer has no response for this request")
	}
	for _, text := range r.Warnings {
		warn(ctx, text)
	}
	if !r.Allowed {
		code, msg := int32(http.StatusForbidden), "without explanation"
		if r.Result != nil {
			if r.Result.Code != 0 {
				code = r.Result.Code
			}
			if r.Result.Message != "" {
				msg = r.Result.Message
			}
		}
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: code, Reason: metav1.StatusReasonForbidden,
			Message: fmt.Sprintf("admission webhook %q denied the request: %s", name, msg),
		}}
	}
	if len(r.Patch) == 0 {
		return pod, nil
	}
	patch, err := jsonpatch.DecodePatch(r.Patch)
	if err != nil {
		return nil, fmt.Errorf("the webhook's patch: %w", err)
	}
	patched, err := patch.Apply(raw)
	if err != nil {
		return nil, fmt.Errorf("the webhook's patch does not apply: %w", err)
	}
	out := &corev1.Pod{}
	if err := json.Unmarshal(patched, out); err != nil {
		return nil, fmt.Errorf("the pod after the webhook's patch: %w", err)
	}
	return out, nil
}

// client dials the Service's ClusterIP and verifies its DNS name, as the API
// server does: cluster DNS is not involved.
func (w *Webhook) client(s *store.Store, hook *admissionregistrationv1.MutatingWebhook) (*http.Client, string, error) {
	ca := hook.ClientConfig.CABundle
	if len(ca) == 0 && w.Root != nil {
		ca = w.Root()
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, "", errors.New("no CA certificate yet: the control plane has not written its root")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: tr}
	if hook.ClientConfig.URL != nil {
		return client, *hook.ClientConfig.URL, nil
	}
	ref := hook.ClientConfig.Service
	if ref == nil {
		return nil, "", errors.New("clientConfig has neither url nor service")
	}
	port := int32(443)
	if ref.Port != nil {
		port = *ref.Port
	}
	svc := store.Get[*corev1.Service](s, "services", ref.Namespace, ref.Name)
	if svc == nil {
		return nil, "", fmt.Errorf("service %q not found in namespace %q", ref.Name, ref.Namespace)
	}
	address := net.JoinHostPort(svc.Spec.ClusterIP, strconv.Itoa(int(port)))
	tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, address)
	}
	host := ref.Name + "." + ref.Namespace + ".svc"
	u := url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(int(port))), Path: "/"}
	if ref.Path != nil {
		u.Path = *ref.Path
	}
	u.RawQuery = "timeout=" + "10s"
	return client, u.String(), nil
}
