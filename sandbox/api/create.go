package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weft-mesh/weft/sandbox/store"
)

// Server is the sandbox's API server. Every object, whether a user or a
// controller makes it, comes in here.
type Server struct {
	Store    *store.Store
	Networks Networks
	Reserved []netip.Addr // addresses of the service range that no service gets
	// Mesh checks an object of a mesh kind; warnings and errors name the field. Nil accepts everything.
	Mesh func(store.Object) (warnings []error, err error)
	// Webhook calls admission webhooks; its Root must be set before the first webhook configuration exists.
	Webhook *Webhook
	Now     func() time.Time // nil means time.Now

	// creating serialises "look for a free address, then store": both happen in one request.
	creating sync.Mutex
}

// Create defaults, admits, validates and stores an object. Its errors are
// apimachinery's API errors (NotFound for a missing namespace, AlreadyExists,
// Invalid with every field that is wrong, Forbidden from a webhook).
func (s *Server) Create(ctx context.Context, o store.Object) (store.Object, error) {
	kind, ok := store.KindFor(o)
	if !ok {
		return nil, fmt.Errorf("this sandbox does not know %s", o.GetObjectKind().GroupVersionKind())
	}
	o = o.DeepCopyObject().(store.Object)
	if err := s.namespaceFor(kind, o); err != nil {
		return nil, err
	}
	setDefaults(o)
	if pod, isPod := o.(*corev1.Pod); isPod {
		admitted, err := s.admitPod(ctx, pod)
		if err != nil {
			return nil, err
		}
		o = admitted
	}
	// As in an API server: webhooks see a generated name only as its prefix.
	if o.GetName() == "" && o.GetGenerateName() != "" {
		o.SetName(o.GetGenerateName() + rand.String(5))
	}
	s.creating.Lock()
	defer s.creating.Unlock()
	var errs field.ErrorList
	if svc, isService := o.(*corev1.Service); isService {
		errs = append(errs, s.assignAddresses(svc, nil)...)
	}
	errs = append(errs, validate(kind, o)...)
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(o.GetObjectKind().GroupVersionKind().GroupKind(), o.GetName(), errs)
	}
	if err := s.checkMesh(kind, o); err != nil {
		return nil, err
	}
	return s.Store.Create(o)
}

func (s *Server) namespaceFor(kind *store.Kind, o store.Object) error {
	if !kind.Namespaced {
		o.SetNamespace("")
		return nil
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	ns := store.Get[*corev1.Namespace](s.Store, "namespaces", "", o.GetNamespace())
	if ns == nil {
		return apierrors.NewNotFound(corev1.Resource("namespaces"), o.GetNamespace())
	}
	if ns.DeletionTimestamp != nil {
		return apierrors.NewForbidden(kind.GroupResource(), o.GetName(), fmt.Errorf("namespace %s is being deleted", ns.Name))
	}
	return nil
}

func (s *Server) checkMesh(kind *store.Kind, o store.Object) error {
	if !kind.IsMesh() || s.Mesh == nil {
		return nil
	}
	if _, err := s.Mesh(o); err != nil {
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: 422, Reason: metav1.StatusReasonInvalid,
			Message: fmt.Sprintf("%s %q is invalid: %v", kind.Printed(), o.GetName(), err),
		}}
	}
	return nil
}

// admitPod does what the ServiceAccount plugin and the webhooks of an API
// server do. The service account must exist, as in Kubernetes.
func (s *Server) admitPod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
		pod.Spec.DeprecatedServiceAccount = "default"
	}
	if store.Get[*corev1.ServiceAccount](s.Store, "serviceaccounts", pod.Namespace, pod.Spec.ServiceAccountName) == nil {
		return nil, apierrors.NewForbidden(corev1.Resource("pods"), pod.Name, fmt.Errorf("error looking up service account %s/%s: serviceaccount %q not found", pod.Namespace, pod.Spec.ServiceAccountName, pod.Spec.ServiceAccountName))
	}
	if s.Webhook == nil {
		return pod, nil
	}
	admitted, err := s.Webhook.Admit(ctx, s.Store, pod)
	if err != nil {
		return nil, err
	}
	setDefaults(admitted)
	return admitted, nil
}

// Update runs change on an object and checks the result like an API server's PUT.
// The namespace, name and status of the object stay as they are.
func (s *Server) Update(key store.Key, change func(store.Object) error) (store.Object, error) {
	kind, ok := store.Resource(key.Resource)
	if !ok {
		return nil, store.NotFound(key)
	}
	s.creating.Lock()
	defer s.creating.Unlock()
	old := s.Store.Get(key)
	if old == nil {
		return nil, store.NotFound(key)
	}
	o := old.DeepCopyObject().(store.Object)
	if err := change(o); err != nil {
		return nil, err
	}
	setDefaults(o)
	var errs field.ErrorList
	if svc, isService := o.(*corev1.Service); isService {
		errs = append(errs, s.assignAddresses(svc, old.(*corev1.Service))...)
	}
	errs = append(errs, validate(kind, o)...)
	errs = append(errs, validateChange(old, o)...)
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(o.GetObjectKind().GroupVersionKind().GroupKind(), o.GetName(), errs)
	}
	if err := s.checkMesh(kind, o); err != nil {
		return nil, err
	}
	return s.Store.Update(key, func(stored store.Object) error {
		if stored.GetResourceVersion() != old.GetResourceVersion() {
			// A controller wrote the status in between: take that, keep the change.
			if err := change(stored); err != nil {
				return err
			}
			setDefaults(stored)
			return nil
		}
		copyInto(stored, o)
		return nil
	})
}

// Delete marks a pod for deletion (the kubelet side takes it away when it has
// stopped) and a namespace as terminating; everything else goes at once, and
// what it owned follows. grace is in seconds; nil means the pod's own.
func (s *Server) Delete(key store.Key, grace *int64) (store.Object, error) {
	o := s.Store.Get(key)
	if o == nil {
		return nil, store.NotFound(key)
	}
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	switch t := o.(type) {
	case *corev1.Pod:
		seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
		if t.Spec.TerminationGracePeriodSeconds != nil {
			seconds = *t.Spec.TerminationGracePeriodSeconds
		}
		if grace != nil {
			seconds = *grace
		}
		return s.Store.Update(key, func(o store.Object) error {
			if o.GetDeletionTimestamp() == nil || (grace != nil && o.GetDeletionGracePeriodSeconds() != nil && seconds < *o.GetDeletionGracePeriodSeconds()) {
				at := metav1.NewTime(now().Add(time.Duration(seconds) * time.Second).Truncate(time.Second))
				o.SetDeletionTimestamp(&at)
				o.SetDeletionGracePeriodSeconds(&seconds)
			}
			return nil
		})
	case *corev1.Namespace:
		switch t.Name {
		case metav1.NamespaceDefault, metav1.NamespaceSystem:
			return nil, apierrors.NewForbidden(corev1.Resource("namespaces"), t.Name, errors.New("this namespace may not be deleted"))
		}
		return s.Store.Update(key, func(o store.Object) error {
			ns := o.(*corev1.Namespace)
			if ns.DeletionTimestamp == nil {
				at := metav1.NewTime(now().Truncate(time.Second))
				ns.DeletionTimestamp = &at
				ns.Status.Phase = corev1.NamespaceTerminating
			}
			return nil
		})
	}
	return s.Store.Remove(key), nil
}

// Message is an API error's text without the machine-readable rest, prefixed as kubectl prints it.
func Message(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		st := status.Status()
		if st.Reason == "" {
			return "Error from server: " + st.Message
		}
		if st.Reason == metav1.StatusReasonInvalid {
			return "The " + strings.TrimPrefix(st.Message, "The ")
		}
		return fmt.Sprintf("Error from server (%s): %s", st.Reason, st.Message)
	}
	return "error: " + err.Error()
}

func sameJSON(a, b any) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}
