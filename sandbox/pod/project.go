package pod

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// fileData is one file of a projected volume.
type fileData struct {
	data []byte
	mode uint32
	user *int64 // owner, when not root
}

// projection is the content of a volume: files by relative path.
type projection struct {
	files map[string]fileData
	renew time.Time // when a token in it must be replaced; zero without
	mode  int32     // default of the volume
}

// project writes a volume's content, if it changed, and arranges for the next token.
func (w *worker) project(v *volume) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return nil
	}
	p, err := w.collect(v)
	if err != nil {
		return err
	}
	if g := fsGroup(w.pod); g != nil {
		for name, f := range p.files {
			// The group may read (kubelet: SetVolumeOwnership with roMask).
			f.mode |= 0o440
			p.files[name] = f
		}
	}
	if err := writeAtomically(v.path, p.files, fsGroup(w.pod)); err != nil {
		return err
	}
	if !p.renew.IsZero() {
		w.renewAt(v, p.renew)
	}
	return nil
}

// renewAt must be called with v.mu held.
func (w *worker) renewAt(v *volume, at time.Time) {
	if v.renew != nil {
		v.renew.Stop()
	}
	v.renew = time.AfterFunc(time.Until(at), func() {
		if err := w.project(v); err != nil {
			w.event(corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for volume %q : %v", v.spec.Name, err)
			v.mu.Lock()
			defer v.mu.Unlock()
			if !v.ended {
				w.renewAt(v, time.Now().Add(w.r.cfg.BackOff))
			}
		}
	})
}

// refreshVolumes projects every volume anew.
func (w *worker) refreshVolumes() {
	w.mu.Lock()
	volumes := maps.Clone(w.volumes)
	w.mu.Unlock()
	for _, v := range volumes {
		if !v.readOnly || v.file {
			continue
		}
		if err := w.project(v); err != nil {
			w.event(corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for volume %q : %v", v.spec.Name, err)
		}
	}
}

// endVolumes stops renewals; after it no volume is written any more.
func (w *worker) endVolumes() {
	w.mu.Lock()
	volumes := maps.Clone(w.volumes)
	w.mu.Unlock()
	for _, v := range volumes {
		v.mu.Lock()
		v.ended = true
		if v.renew != nil {
			v.renew.Stop()
		}
		v.mu.Unlock()
	}
}

// collect gathers the content of a configMap, secret, downwardAPI or projected volume.
func (w *worker) collect(v *volume) (*projection, error) {
	spec := v.spec
	p := &projection{files: map[string]fileData{}, mode: 0o644}
	set := func(mode *int32) {
		if mode != nil {
			p.mode = *mode
		}
	}
	switch {
	case spec.ConfigMap != nil:
		set(spec.ConfigMap.DefaultMode)
		return p, w.addConfigMap(p, spec.ConfigMap.Name, spec.ConfigMap.Items, spec.ConfigMap.Optional)
	case spec.Secret != nil:
		set(spec.Secret.DefaultMode)
		return p, w.addSecret(p, spec.Secret.SecretName, spec.Secret.Items, spec.Secret.Optional)
	case spec.DownwardAPI != nil:
		set(spec.DownwardAPI.DefaultMode)
		return p, w.addFields(p, spec.DownwardAPI.Items)
	}
	set(spec.Projected.DefaultMode)
	for i := range spec.Projected.Sources {
		s := &spec.Projected.Sources[i]
		var err error
		switch {
		case s.ConfigMap != nil:
			err = w.addConfigMap(p, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
		case s.Secret != nil:
			err = w.addSecret(p, s.Secret.Name, s.Secret.Items, s.Secret.Optional)
		case s.DownwardAPI != nil:
			err = w.addFields(p, s.DownwardAPI.Items)
		case s.ServiceAccountToken != nil:
			err = w.addToken(p, v, s.ServiceAccountToken)
		default:
			err = errors.New("this kind of projected source is not available here; configMap, secret, downwardAPI and serviceAccountToken are")
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (w *worker) addConfigMap(p *projection, name string, items []corev1.KeyToPath, optional *bool) error {
	object, err := w.configMap(name, optional)
	if err != nil || object == nil {
		return err
	}
	data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	maps.Copy(data, object.BinaryData)
	return p.addItems(data, items, isTrue(optional), "ConfigMap "+w.pod.Namespace+"/"+name)
}

func (w *worker) addSecret(p *projection, name string, items []corev1.KeyToPath, optional *bool) error {
	object, err := w.secret(name, optional)
	if err != nil || object == nil {
		return err
	}
	return p.addItems(secretData(object), items, isTrue(optional), "Secret "+w.pod.Namespace+"/"+name)
}

// addItems adds all keys, or the named ones at their paths.
func (p *projection) addItems(data map[string][]byte, items []corev1.KeyToPath, optional bool, object string) error {
	if len(items) == 0 {
		for key, value := range data {
			p.files[key] = fileData{data: value, mode: uint32(p.mode)}
		}
		return nil
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("references non-existent key %s of %s", item.Key, object)
		}
		if err := p.add(item.Path, value, item.Mode); err != nil {
			return err
		}
	}
	return nil
}

func (p *projection) add(name string, data []byte, mode *int32) error {
	clean := path.Clean(name)
	if name == "" || path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || strings.HasPrefix(clean, "..") {
		return fmt.Errorf("path %q: must be relative, stay in the volume and not begin with '..'", name)
	}
	f := fileData{data: data, mode: uint32(p.mode)}
	if mode != nil {
		f.mode = uint32(*mode)
	}
	p.files[clean] = f
	return nil
}

func (w *worker) addFields(p *projection, items []corev1.DownwardAPIVolumeFile) error {
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = w.field(item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = w.resource(item.ResourceFieldRef, "")
		default:
			err = fmt.Errorf("downwardAPI item %q names neither fieldRef nor resourceFieldRef", item.Path)
		}
		if err == nil {
			err = p.add(item.Path, []byte(value), item.Mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// token is a service-account token in a volume.
type token struct {
	value string
	renew time.Time
}

// addToken adds a token, a new one when there is none or its time has come.
func (w *worker) addToken(p *projection, v *volume, s *corev1.ServiceAccountTokenProjection) error {
	name := path.Clean(s.Path)
	t := v.tokens[name]
	if !time.Now().Before(t.renew) {
		var err error
		if t, err = w.fetchToken(s); err != nil {
			return fmt.Errorf("failed to fetch token: %w", err)
		}
		if v.tokens == nil {
			v.tokens = map[string]token{}
		}
		v.tokens[name] = t
	}
	// Root alone reads it, unless containers that are not root must: then they alone, or their group, or everybody
	// (kubelet: projected volume, FSUser and FSGroup).
	mode := p.mode
	user := commonUser(w.pod)
	if user != nil || fsGroup(w.pod) != nil {
		mode = 0o600
	}
	if err := p.add(s.Path, []byte(t.value), &mode); err != nil {
		return err
	}
	f := p.files[name]
	f.user = user
	p.files[name] = f
	if p.renew.IsZero() || t.renew.Before(p.renew) {
		p.renew = t.renew
	}
	return nil
}

// fetchToken asks for a token. It is to be replaced when 80 % of its life, or a day, has passed (kubelet: token manager).
func (w *worker) fetchToken(s *corev1.ServiceAccountTokenProjection) (token, error) {
	if w.r.cfg.Token == nil {
		return token{}, errors.New("service-account tokens are not available here")
	}
	ttl := time.Hour
	if s.ExpirationSeconds != nil {
		ttl = time.Duration(*s.ExpirationSeconds) * time.Second
	}
	now := time.Now()
	value, expires, err := w.r.cfg.Token(w.ctx, w.latest.Load(), s.Audience, ttl)
	if err != nil {
		return token{}, err
	}
	renew := min(expires.Sub(now)*8/10, 24*time.Hour)
	// Tokens of pods that started together are not asked for together.
	renew -= time.Duration(rand.Int64N(int64(max(renew/100, 1))))
	return token{value: value, renew: now.Add(max(renew, time.Second))}, nil
}
