package templates

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Values is what expressions refer to.
type Values struct {
	// Named values by the name in ${name}. nil means absent. A func() (any, error) is called when a template refers to it.
	Named map[string]any
	// Labels and Annotations of the pod.
	Labels, Annotations map[string]string
}

func (v *Values) lookup(r reference) (any, error) {
	if r.from == "" {
		x := v.Named[r.name]
		if lazy, ok := x.(func() (any, error)); ok {
			x, err := lazy()
			if err != nil {
				err = valueError{err}
			}
			return x, err
		}
		return x, nil
	}
	m := v.Labels
	if r.from == "annotations" {
		m = v.Annotations
	}
	if text, ok := m[r.name]; ok {
		return text, nil
	}
	return nil, nil
}

// valueError is a value's own, which says everything.
type valueError struct{ error }

// reference is the inside of ${...}.
type reference struct {
	from       string // "", "labels" or "annotations"
	name       string
	fallback   string
	hasDefault bool
}

// leaf is an evaluated string: text[0] ref[0] text[1] ref[1] ... text[n].
type leaf struct {
	text []string
	refs []reference
}

// parseLeaf returns ok=false when the string has no expression; plain is then the string with its escapes resolved.
func parseLeaf(s string, known func(string) bool) (l leaf, plain string, ok bool, err error) {
	var text strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			text.WriteString(s)
			break
		}
		if i > 0 && s[i-1] == '$' {
			text.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			return leaf{}, "", false, fmt.Errorf("%q: ${ without }; write $${ for the text ${", s)
		}
		text.WriteString(s[:i])
		r, err := parseReference(s[i+2:i+end], known)
		if err != nil {
			return leaf{}, "", false, err
		}
		l.text = append(l.text, text.String())
		l.refs = append(l.refs, r)
		text.Reset()
		s = s[i+end+1:]
	}
	if len(l.refs) == 0 {
		return leaf{}, text.String(), false, nil
	}
	l.text = append(l.text, text.String())
	return l, "", true, nil
}

func parseReference(s string, known func(string) bool) (reference, error) {
	name, fallback, has := strings.Cut(s, ":-")
	r := reference{name: strings.TrimSpace(name), fallback: fallback, hasDefault: has}
	for _, from := range []string{"labels", "annotations"} {
		if key, ok := strings.CutPrefix(r.name, from+"["); ok {
			key, closed := strings.CutSuffix(key, "]")
			if !closed || key == "" {
				return reference{}, fmt.Errorf("${%s}: want ${%s[key]}", s, from)
			}
			r.from, r.name = from, key
			return r, nil
		}
	}
	if !known(r.name) {
		return reference{}, fmt.Errorf("${%s}: no value named %q", s, r.name)
	}
	return r, nil
}

func (l leaf) String() string {
	var b strings.Builder
	for i, r := range l.refs {
		b.WriteString(l.text[i] + "${" + r.name + "}")
	}
	return b.String() + l.text[len(l.refs)]
}

// value evaluates the leaf: the value itself for a lone expression, a string else. nil means absent, also when any
// expression within text is absent: "x-${missing}" is nobody's intention.
func (l leaf) value(v *Values) (any, error) {
	lone := len(l.refs) == 1 && l.text[0] == "" && l.text[1] == ""
	var b strings.Builder
	for i, r := range l.refs {
		x, err := v.lookup(r)
		if err != nil {
			return nil, err
		}
		if !truthy(x) && r.hasDefault {
			x = r.fallback
		}
		if lone {
			return x, nil
		}
		if x == nil {
			return nil, nil
		}
		text, ok := scalarText(x)
		if !ok {
			return nil, fmt.Errorf("${%s} is a %T and cannot stand inside text", r.name, x)
		}
		b.WriteString(l.text[i])
		b.WriteString(text)
	}
	b.WriteString(l.text[len(l.refs)])
	return b.String(), nil
}

func scalarText(x any) (string, bool) {
	switch x := x.(type) {
	case string:
		return x, true
	case bool:
		return strconv.FormatBool(x), true
	case fmt.Stringer:
		return x.String(), true
	}
	switch v := reflect.ValueOf(x); v.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10), true
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10), true
	case reflect.String:
		return v.String(), true
	}
	return "", false
}

func truthy(x any) bool {
	switch x := x.(type) {
	case nil:
		return false
	case bool:
		return x
	case string:
		return x != ""
	}
	v := reflect.ValueOf(x)
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() > 0
	}
	return !v.IsZero()
}

var (
	quantityType    = reflect.TypeFor[resource.Quantity]()
	intOrStringType = reflect.TypeFor[intstr.IntOrString]()
)

// assign gives a value to a field; the types must agree, except that text becomes a quantity or an int-or-string, an
// integer any integer type that holds it, and that a value stands for a pointer to it.
func assign(to reflect.Value, x any) error {
	v := reflect.ValueOf(x)
	t := to.Type()
	if v.Type().AssignableTo(t) {
		to.Set(v)
		return nil
	}
	if t.Kind() == reflect.Pointer {
		p := reflect.New(t.Elem())
		if err := assign(p.Elem(), x); err != nil {
			return err
		}
		to.Set(p)
		return nil
	}
	switch {
	case t == quantityType && v.Kind() == reflect.String:
		q, err := resource.ParseQuantity(v.String())
		if err != nil {
			return fmt.Errorf("%q is not a quantity such as 100m or 128Mi", v.String())
		}
		to.Set(reflect.ValueOf(q))
		return nil
	case t == intOrStringType && v.Kind() == reflect.String:
		to.Set(reflect.ValueOf(intstr.Parse(v.String())))
		return nil
	case t == intOrStringType && v.CanInt():
		to.Set(reflect.ValueOf(intstr.FromInt32(int32(v.Int()))))
		return nil
	case t.Kind() == reflect.String && v.Kind() == reflect.String:
		to.SetString(v.String())
		return nil
	case to.CanInt() && v.CanInt() && !to.OverflowInt(v.Int()):
		to.SetInt(v.Int())
		return nil
	case to.CanInt() && v.CanUint() && v.Uint() < 1<<63 && !to.OverflowInt(int64(v.Uint())):
		to.SetInt(int64(v.Uint()))
		return nil
	}
	return fmt.Errorf("a %s cannot be given to a field of type %s", v.Type(), t)
}
