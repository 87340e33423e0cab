package pod

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultPath is what container runtimes set when neither image nor pod do.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is a container's variables as a map; the order of NAME=value has no meaning to a program.
type environment map[string]string

func (e environment) lookup(name string) (string, bool) {
	v, ok := e[name]
	return v, ok
}

// list adds what the runtime sets by itself.
func (e environment) list(hostname, home string) []string {
	all := environment{"PATH": defaultPath, "HOSTNAME": hostname, "HOME": home}
	maps.Copy(all, e)
	out := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+all[name])
	}
	return out
}

// environment resolves envFrom and env (kubelet: makeEnvironmentVariables). Each variable may refer to those before it.
func (c *container) environment() (environment, error) {
	env := environment{}
	for i := range c.spec.EnvFrom {
		if err := c.envFrom(env, &c.spec.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.spec.Env {
		v := &c.spec.Env[i]
		switch {
		case v.Value != "":
			env[v.Name] = expand(v.Value, env.lookup)
		case v.ValueFrom != nil:
			value, ok, err := c.valueFrom(v.ValueFrom)
			if err != nil {
				return nil, &configError{"CreateContainerConfigError", fmt.Errorf("env %s: %w", v.Name, err)}
			}
			if ok {
				env[v.Name] = value
			}
		default:
			env[v.Name] = ""
		}
	}
	return env, nil
}

func (c *container) envFrom(env environment, from *corev1.EnvFromSource) error {
	put := func(key, value string) {
		// Kubernetes skips what cannot be a variable's name; since 1.30 that is only "=" and control characters.
		if key = from.Prefix + key; key != "" && !strings.ContainsAny(key, "=\x00") {
			env[key] = value
		}
	}
	switch {
	case from.ConfigMapRef != nil:
		data, err := c.w.configMap(from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		if err != nil {
			return &configError{"CreateContainerConfigError", err}
		}
		if data == nil {
			return nil
		}
		for key, value := range data.Data {
			put(key, value)
		}
	case from.SecretRef != nil:
		data, err := c.w.secret(from.SecretRef.Name, from.SecretRef.Optional)
		if err != nil {
			return &configError{"CreateContainerConfigError", err}
		}
		if data == nil {
			return nil
		}
		for key, value := range secretData(data) {
			put(key, string(value))
		}
	}
	return nil
}

// valueFrom returns a variable's value; ok is false when an optional source is missing, which leaves the variable unset.
func (c *container) valueFrom(from *corev1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = c.w.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = c.w.resource(from.ResourceFieldRef, c.spec.Name)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		data, err := c.w.configMap(ref.Name, ref.Optional)
		if err != nil || data == nil {
			return "", false, err
		}
		value, ok := data.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", ref.Key, c.w.pod.Namespace, ref.Name)
		}
		return value, ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		data, err := c.w.secret(ref.Name, ref.Optional)
		if err != nil || data == nil {
			return "", false, err
		}
		value, ok := secretData(data)[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %s in Secret %s/%s", ref.Key, c.w.pod.Namespace, ref.Name)
		}
		return string(value), ok, nil
	}
	return "", false, fmt.Errorf("valueFrom names no source known here (fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef)")
}

func isTrue(b *bool) bool { return b != nil && *b }

// configMap returns nil without an error when an optional one does not exist.
func (w *worker) configMap(name string, optional *bool) (*corev1.ConfigMap, error) {
	if w.r.cfg.ConfigMap != nil {
		if data, ok := w.r.cfg.ConfigMap(w.pod.Namespace, name); ok {
			return data, nil
		}
	}
	if isTrue(optional) {
		return nil, nil
	}
	return nil, fmt.Errorf("configmap %q not found", name)
}

// secret returns nil without an error when an optional one does not exist.
func (w *worker) secret(name string, optional *bool) (*corev1.Secret, error) {
	if w.r.cfg.Secret != nil {
		if data, ok := w.r.cfg.Secret(w.pod.Namespace, name); ok {
			return data, nil
		}
	}
	if isTrue(optional) {
		return nil, nil
	}
	return nil, fmt.Errorf("secret %q not found", name)
}

// secretData joins data and stringData: the API server does that on write, a store fed from files may not have.
func secretData(s *corev1.Secret) map[string][]byte {
	if len(s.StringData) == 0 {
		return s.Data
	}
	out := maps.Clone(s.Data)
	if out == nil {
		out = map[string][]byte{}
	}
	for key, value := range s.StringData {
		out[key] = []byte(value)
	}
	return out
}
