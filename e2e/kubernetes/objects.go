package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/mesh/manifest"
)

// Client is that of an administrator.
func (a *APIServer) Client() client.Client {
	a.t.Helper()
	scheme := runtime.NewScheme()
	for gvk := range manifest.Scheme().AllKnownTypes() {
		o, err := manifest.Scheme().New(gvk)
		if err != nil {
			a.t.Fatal(err)
		}
		scheme.AddKnownTypeWithName(gvk, o)
		if gvk.Version != runtime.APIVersionInternal {
			metav1.AddToGroupVersion(scheme, gvk.GroupVersion())
		}
	}
	for _, add := range []func(*runtime.Scheme) error{apiextensionsv1.AddToScheme, authenticationv1.AddToScheme, coordinationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			a.t.Fatal(err)
		}
	}
	log.SetLogger(logr.Discard())
	c, err := client.New(a.Config(), client.Options{Scheme: scheme})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// Apply creates or replaces the objects of a manifest, and the status of pods too where it has an address.
func (a *APIServer) Apply(text string) {
	a.t.Helper()
	c := a.Client()
	for _, o := range a.decode(text) {
		if err := put(c, o); err != nil {
			a.t.Fatalf("%T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
		}
	}
}

// Try creates or replaces objects. undo removes them, namespaces excepted, also after an error.
func (a *APIServer) Try(objects []client.Object) (undo func(), err error) {
	a.t.Helper()
	c := a.Client()
	var done []client.Object
	undo = func() {
		for _, o := range done {
			if _, stays := o.(*corev1.Namespace); stays {
				continue
			}
			if err := c.Delete(context.Background(), o, client.GracePeriodSeconds(0)); err != nil {
				a.t.Errorf("%T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
			}
		}
	}
	for _, o := range objects {
		if err := put(c, o.DeepCopyObject().(client.Object)); err != nil {
			return undo, fmt.Errorf("%T %s/%s: %w", o, o.GetNamespace(), o.GetName(), err)
		}
		done = append(done, o)
	}
	return undo, nil
}

func put(c client.Client, o client.Object) error {
	ctx, wanted := context.Background(), o.DeepCopyObject().(client.Object)
	err := c.Create(ctx, o)
	if apierrors.IsAlreadyExists(err) {
		existing := wanted.DeepCopyObject().(client.Object)
		if err = c.Get(ctx, client.ObjectKeyFromObject(o), existing); err != nil {
			return err
		}
		o = wanted.DeepCopyObject().(client.Object)
		o.SetResourceVersion(existing.GetResourceVersion())
		if s, ok := o.(*corev1.Service); ok && s.Spec.ClusterIP == "" {
			s.Spec.ClusterIP = existing.(*corev1.Service).Spec.ClusterIP
		}
		if p, ok := o.(*corev1.Pod); ok { // a pod's spec is for ever
			p.Spec = existing.(*corev1.Pod).Spec
		}
		err = c.Update(ctx, o)
	}
	if err != nil {
		return err
	}
	if p, ok := wanted.(*corev1.Pod); ok && p.Status.PodIP != "" {
		if len(p.Status.PodIPs) == 0 {
			p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		}
		p.SetResourceVersion(o.GetResourceVersion())
		p.SetUID(o.GetUID())
		return c.Status().Update(ctx, p)
	}
	return nil
}

// Delete removes the objects of a manifest at once.
func (a *APIServer) Delete(text string) {
	a.t.Helper()
	c := a.Client()
	for _, o := range a.decode(text) {
		if err := c.Delete(context.Background(), o, client.GracePeriodSeconds(0)); err != nil {
			a.t.Fatalf("%T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
		}
	}
}

func (a *APIServer) decode(text string) (out []client.Object) {
	a.t.Helper()
	objects, _, err := manifest.Decode(strings.NewReader(text), "")
	if err != nil {
		a.t.Fatal(err)
	}
	manifest.SetNamespace(objects, "default")
	for _, o := range objects {
		out = append(out, o.Object.(client.Object))
	}
	return out
}

// InstallDefinitions installs the mesh's custom resource definitions, those with the given
// plural names or all, and waits until they are served.
func (a *APIServer) InstallDefinitions(plurals ...string) {
	a.t.Helper()
	c, ctx := a.Client(), context.Background()
	var names []string
	for _, d := range a.definitions(plurals) {
		if err := c.Create(ctx, d); err != nil && !apierrors.IsAlreadyExists(err) {
			a.t.Fatal(err)
		}
		names = append(names, d.Name)
	}
	for deadline := time.Now().Add(patience); len(names) > 0; {
		var d apiextensionsv1.CustomResourceDefinition
		if err := c.Get(ctx, client.ObjectKey{Name: names[0]}, &d); err != nil {
			a.t.Fatal(err)
		}
		if slices.ContainsFunc(d.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
		}) {
			names = names[1:]
			continue
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("%s is not served after %s", names[0], patience)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// RemoveDefinitions removes custom resource definitions and all their objects, and waits until they are gone: the API
// server takes away the objects first.
func (a *APIServer) RemoveDefinitions(plurals ...string) {
	a.t.Helper()
	c, ctx := a.Client(), context.Background()
	definitions := a.definitions(plurals)
	for _, d := range definitions {
		if err := c.Delete(ctx, d); err != nil {
			a.t.Fatal(err)
		}
	}
	deadline := time.Now().Add(patience)
	for _, d := range definitions {
		for {
			err := c.Get(ctx, client.ObjectKeyFromObject(d), new(apiextensionsv1.CustomResourceDefinition))
			if apierrors.IsNotFound(err) {
				break
			}
			if err != nil || time.Now().After(deadline) {
				a.t.Fatalf("%s is not gone after %s: %v", d.Name, patience, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// definitions are those that the mesh is installed with.
func (a *APIServer) definitions(plurals []string) (out []*apiextensionsv1.CustomResourceDefinition) {
	a.t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(deploy.CRDs()), 4096)
	for {
		d := new(apiextensionsv1.CustomResourceDefinition)
		if decoder.Decode(d) != nil { // the end
			return out
		}
		if d.Name != "" && (len(plurals) == 0 || slices.Contains(plurals, d.Spec.Names.Plural)) {
			out = append(out, d)
		}
	}
}

// Token asks the API server for a token of a service account, bound to a pod when pod is not empty.
func (a *APIServer) Token(namespace, account, pod, audience string) string {
	a.t.Helper()
	c, ctx := a.Client(), context.Background()
	seconds := int64(3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	if pod != "" {
		var p corev1.Pod
		if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, &p); err != nil {
			a.t.Fatal(err)
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod, UID: p.UID}
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := c.SubResource("token").Create(ctx, sa, request); err != nil {
		a.t.Fatal(err)
	}
	return request.Status.Token
}
