// Shows /openapi.json, with nothing from elsewhere: Swagger UI comes from a server on the internet.
"use strict";

const page = document.getElementById("operations");

function add(parent, tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
}

function table(parent, title, rows) {
  if (!rows.length) return;
  add(parent, "h3", title);
  const body = add(add(parent, "table", ""), "tbody", "");
  for (const cells of rows) {
    const row = add(body, "tr", "");
    for (const cell of cells) add(row, "td", cell);
  }
}

function limits(schema) {
  const ends = schema.minimum === undefined ? "" : ` from ${schema.minimum} to ${schema.maximum}`;
  return `${schema.type}${ends}${schema.default === undefined ? "" : `, by default ${schema.default}`}`;
}

function fields(schema, all) {
  const name = schema.$ref ? schema.$ref.split("/").pop() : "";
  if (name) return Object.entries(all[name].properties).map(([key, part]) => [key, fields(part, all)]);
  if (schema.items) return fields(schema.items, all);
  return (schema.anyOf || [schema]).map((part) => part.type).join(" or ");
}

function tree(parent, part) {
  const list = add(parent, "ul", "");
  for (const [name, inner] of part) {
    const item = add(list, "li", "");
    add(item, "code", name);
    if (typeof inner === "string") item.append(` ${inner}`);
    else tree(item, inner); // of an object, or of each part of a list
  }
}

function show(path, method, operation, schemas) {
  const section = add(page, "section", "", "operation");
  add(section, "h2", `${method.toUpperCase()} ${path}`);
  add(section, "p", operation.summary);
  if (method === "post") {
    const url = `${location.origin}${path}`;
    add(section, "pre", `curl --data-binary @photo.jpg ${url}\ncurl -F file=@a.jpg -F file=@b.jpg "${url}?top_k=1"`);
  }
  table(section, "In the address", (operation.parameters || []).map((one) => [one.name, limits(one.schema)]));
  table(section, "Body", Object.keys((operation.requestBody || { content: {} }).content).map((kind) => [kind]));
  table(section, "Answers", Object.entries(operation.responses).map(([code, one]) => [code, one.description]));
  const answer = operation.responses["200"].content?.["application/json"];
  if (answer?.schema.$ref) {
    add(section, "h3", "Fields of the answer");
    tree(section, fields(answer.schema, schemas));
  }
}

fetch("/openapi.json")
  .then((response) => response.json())
  .then((api) => {
    for (const [path, methods] of Object.entries(api.paths))
      for (const [method, operation] of Object.entries(methods)) show(path, method, operation, api.components.schemas);
  })
  .catch(() => add(page, "p", "no answer from the server"));
