package manifest

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

//go:generate go run generate.go
//go:embed schemas
var schemas embed.FS

// kindSchema is the CustomResourceDefinition of one kind. In Istio's API all versions of a kind have the same
// schema, which the generator checks.
type kindSchema struct {
	Group    string                          `json:"group"`
	Kind     string                          `json:"kind"`
	Versions []string                        `json:"versions"`
	Schema   apiextensionsv1.JSONSchemaProps `json:"schema"`

	structural *structuralschema.Structural
	validator  validation.SchemaValidator
	rules      *cel.Validator // nil when it has none
}

var compiled sync.Map // kind -> func() (*kindSchema, error), so that only the kinds that are met cost time

// schemaOf returns the schema of a mesh kind, or nil for a kind that has none.
func schemaOf(group, kind string) (*kindSchema, error) {
	if !strings.HasSuffix(group, ".istio.io") {
		return nil, nil
	}
	load, ok := compiled.Load(kind)
	if !ok {
		load, _ = compiled.LoadOrStore(kind, sync.OnceValues(func() (*kindSchema, error) { return compile(kind) }))
	}
	s, err := load.(func() (*kindSchema, error))()
	if err != nil || s == nil || s.Group != group {
		return nil, err
	}
	return s, nil
}

func compile(kind string) (*kindSchema, error) {
	text, err := schemas.ReadFile("schemas/" + strings.ToLower(kind) + ".json")
	if err != nil {
		return nil, nil
	}
	s := &kindSchema{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", kind, err)
	}
	if s.Kind != kind {
		return nil, nil
	}
	internal := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(&s.Schema, internal, nil); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", kind, err)
	}
	if s.structural, err = structuralschema.NewStructural(internal); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", kind, err)
	}
	if s.validator, _, err = validation.NewSchemaValidator(internal); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", kind, err)
	}
	s.rules = cel.NewValidator(s.structural, true, celconfig.PerCallLimit)
	return s, nil
}

// check judges an object as an API server does, and changes it as one does: nulls that mean nothing are
// removed, defaults are filled in. A field that an API server would silently drop is an error here.
func (s *kindSchema) check(object map[string]any) []mistake {
	defaulting.PruneNonNullableNullsWithoutDefaults(object, s.structural)
	defaulting.Default(object, s.structural)
	var out []mistake
	unknown := pruning.PruneWithOptions(object, s.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	for _, path := range unknown {
		out = append(out, s.unknownField(path))
	}
	errs := validation.ValidateCustomResource(nil, object, s.validator)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s.structural, object)...)
	if s.rules != nil && len(errs) == 0 { // rules may assume that types are right
		more, _ := s.rules.Validate(context.Background(), nil, s.structural, object, nil, celconfig.RuntimeCELCostBudget)
		errs = append(errs, more...)
	}
	for _, e := range errs {
		m := mistakeOf(e)
		reword(&m, object)
		out = append(out, m)
	}
	return out
}

var (
	oneOfText    = regexp.MustCompile(`^"(.*)" must validate one and only one schema \(oneOf\)`)
	durationText = "type conversion error from 'string' to 'google.protobuf.Duration'"
)

// reword says what two of the schemas' own messages mean, which name neither the value nor the way out.
func reword(m *mistake, object map[string]any) {
	if path := oneOfText.FindStringSubmatch(m.message); path != nil {
		m.field = path[1]
		m.message = "one of the choices that this field has must be made"
		if chosen, _ := valueAt(object, m.field).(map[string]any); len(chosen) > 1 {
			m.message = strings.Join(slices.Sorted(maps.Keys(chosen)), " and ") + " exclude each other: keep one"
		}
	}
	if strings.Contains(m.message, durationText) {
		m.message = quote(valueAt(object, m.field)) + " is not a duration such as 500ms, 2s or 1m"
	}
}

// valueAt follows a path such as spec.http[0].timeout; nil when there is nothing.
func valueAt(object map[string]any, path string) any {
	var at any = object
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		switch v := at.(type) {
		case map[string]any:
			at = v[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(v) {
				return nil
			}
			at = v[i]
		default:
			return nil
		}
	}
	return at
}

// mistake is what is wrong with one field of one object.
type mistake struct {
	field   string
	message string
	warning bool
}

func (s *kindSchema) unknownField(path string) mistake {
	parent, name := path, path
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		parent, name = path[:i], path[i+1:]
	} else {
		parent = ""
	}
	at := s.structural
	for _, m := range pathStep.FindAllStringSubmatch(parent, -1) {
		switch {
		case at == nil:
		case m[1] == "":
			at = elementOf(at)
		default:
			at = propertyOf(at, m[1])
		}
	}
	var known []string
	if at != nil {
		for k := range at.Properties {
			known = append(known, k)
		}
		if parent == "" {
			known = append(known, "apiVersion", "kind", "metadata")
		}
	}
	slices.Sort(known)
	return mistake{field: path, message: unknownField(name, known)}
}

func elementOf(s *structuralschema.Structural) *structuralschema.Structural {
	if s.Items != nil {
		return s.Items
	}
	if s.AdditionalProperties != nil {
		return s.AdditionalProperties.Structural
	}
	return nil
}

func propertyOf(s *structuralschema.Structural, name string) *structuralschema.Structural {
	if p, ok := s.Properties[name]; ok {
		return &p
	}
	return elementOf(s)
}

// unknownField words the message for a field that does not exist.
func unknownField(name string, known []string) string {
	if old, ok := replacedFields[name]; ok && slices.Contains(known, old) {
		return fmt.Sprintf("unknown field; it was replaced by %q", old)
	}
	if n := Nearest(name, known); n != "" {
		return fmt.Sprintf("unknown field; did you mean %q?", n)
	}
	if len(known) == 0 || len(known) > 30 {
		return "unknown field"
	}
	return "unknown field; known here are " + strings.Join(known, ", ")
}

// replacedFields are old names that still go around in examples, and today's.
var replacedFields = map[string]string{
	"percent":        "percentage",
	"mirror_percent": "mirrorPercentage",
	"mtlsMode":       "mtls",
}

var quoted = regexp.MustCompile(`"([^"]*)"`)

// notSupported names the values of an enumeration, and the nearest.
func notSupported(e *field.Error) string {
	var known []string
	for _, m := range quoted.FindAllStringSubmatch(e.Detail, -1) {
		known = append(known, m[1])
	}
	if s, ok := e.BadValue.(string); ok {
		if n := Nearest(s, known); n != "" {
			return fmt.Sprintf("%q is not a value of this field; did you mean %q?", s, n)
		}
	}
	return fmt.Sprintf("%s is not a value of this field: use %s", quote(e.BadValue), strings.Join(known, ", "))
}

var wantedType = regexp.MustCompile(`must be of type (\w+): "(\w+)"`)

// typeInvalid says what was found and what belongs there.
func typeInvalid(e *field.Error) string {
	m := wantedType.FindStringSubmatch(e.Detail)
	if m == nil {
		return e.Detail
	}
	names := map[string]string{"integer": "whole number", "object": "mapping", "array": "list"}
	name := func(s string) string {
		if n, ok := names[s]; ok {
			return n
		}
		return s
	}
	text := fmt.Sprintf("a %s does not fit here: a %s was expected", name(m[2]), name(m[1]))
	if m[1] == "string" && (m[2] == "boolean" || m[2] == "integer" || m[2] == "number") {
		text += "; put the value in quotes"
	}
	return text
}

func mistakeOf(e *field.Error) mistake {
	m := mistake{field: e.Field}
	switch e.Type {
	case field.ErrorTypeRequired:
		m.message = "required field is missing"
		if e.Detail != "" {
			m.message = e.Detail
		}
	case field.ErrorTypeNotSupported:
		m.message = notSupported(e)
	case field.ErrorTypeTypeInvalid:
		m.message = typeInvalid(e)
	case field.ErrorTypeDuplicate:
		m.message = fmt.Sprintf("%s stands here a second time", quote(e.BadValue))
	default:
		m.message = strings.TrimPrefix(e.ErrorBody(), string(e.Type.String())+": ")
		if e.Detail != "" {
			m.message = e.Detail
		}
	}
	m.field = strings.TrimPrefix(strings.ReplaceAll(m.field, "<nil>", ""), ".")
	return m
}

func quote(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprint(v)
}
