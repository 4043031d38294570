package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const definitions = "#/definitions/"

// writeSchemas makes of what an API server says of its kinds (`kubectl get --raw /openapi/v2`) a file for each of them, as kubeconform
// looks for it: a JSON Schema with all that it refers to, which takes no field that the kind doesn't have.
func writeSchemas(openapi io.Reader, folder string) error {
	var document struct {
		Definitions map[string]map[string]any `json:"definitions"`
	}
	if err := json.NewDecoder(openapi).Decode(&document); err != nil {
		return fmt.Errorf("this is no OpenAPI document: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, schema := range document.Definitions {
		document.Definitions[name] = strict(schema).(map[string]any)
	}
	for name, schema := range document.Definitions {
		kinds, _ := schema["x-kubernetes-group-version-kind"].([]any)
		for _, kind := range kinds {
			of, _ := kind.(map[string]any)
			file, err := json.Marshal(map[string]any{
				"$ref":        definitions + name,
				"definitions": reached(name, document.Definitions, map[string]map[string]any{}),
			})
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(folder, schemaFile(of)), file, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// schemaFile is kubeconform's {{ .ResourceKind }}{{ .KindSuffix }}.json.
func schemaFile(kind map[string]any) string {
	text := func(key string) string { word, _ := kind[key].(string); return strings.ToLower(word) }
	group, _, _ := strings.Cut(text("group"), ".")
	if group != "" {
		group = "-" + group
	}
	return text("kind") + group + "-" + text("version") + ".json"
}

// strict says in JSON Schema's words what the API server means by its own.
func strict(part any) any {
	switch part := part.(type) {
	case []any:
		for place := range part {
			part[place] = strict(part[place])
		}
	case map[string]any:
		if part["format"] == "int-or-string" {
			return map[string]any{"type": []string{"integer", "string"}}
		}
		// A quantity: the one string of which the API server takes a number as well.
		if description, _ := part["description"].(string); strings.HasPrefix(description, "Quantity is a fixed-point representation") {
			return map[string]any{"type": []string{"number", "string"}}
		}
		for key := range part {
			part[key] = strict(part[key])
		}
		_, hasFields := part["properties"].(map[string]any)
		_, saysMore := part["additionalProperties"]
		if hasFields && !saysMore && part["type"] == "object" && part["x-kubernetes-preserve-unknown-fields"] != true {
			part["additionalProperties"] = false
		}
	}
	return part
}

// reached gathers a definition and all that it refers to.
func reached(name string, all, found map[string]map[string]any) map[string]map[string]any {
	schema, known := all[name]
	if _, seen := found[name]; seen || !known {
		return found
	}
	found[name] = schema
	var walk func(part any)
	walk = func(part any) {
		switch part := part.(type) {
		case []any:
			for _, one := range part {
				walk(one)
			}
		case map[string]any:
			if to, isText := part["$ref"].(string); isText {
				reached(strings.TrimPrefix(to, definitions), all, found)
			}
			for _, one := range part {
				walk(one)
			}
		}
	}
	walk(schema)
	return found
}
