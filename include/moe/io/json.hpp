// SPDX-License-Identifier: MIT
#ifndef MOE_IO_JSON_HPP
#define MOE_IO_JSON_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Appends `value` as a JSON string. `value` must be valid UTF-8.
inline void append_json_string(std::string& out, std::string_view value) {
    constexpr const char* hex = "0123456789abcdef";
    out += '"';
    for (const char c : value) {
        switch (c) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\b':
                out += "\\b";
                break;
            case '\f':
                out += "\\f";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\r':
                out += "\\r";
                break;
            case '\t':
                out += "\\t";
                break;
            default:
                if (static_cast<unsigned char>(c) < 0x20) {
                    out += "\\u00";
                    out += hex[c >> 4];
                    out += hex[c & 15];
                } else {
                    out += c;
                }
        }
    }
    out += '"';
}

/// Reads the part of JSON that a safetensors header is made of: objects, strings, and arrays of
/// unsigned integers; the rest it can skip. The caller asks for what must come next and gets it or
/// a sentence:
///
///     reader.begin_object();
///     while (reader.next_key(key, scratch)) value = reader.unsigned_integer();
///     reader.finish();
///
/// Numbers never pass through floating point; a sign, fraction, exponent or leading zero of one
/// that is asked for is an error, as is every value of another kind (true, null, ...). The reader
/// sees one key at a time: whether a key came twice is the caller's to check. It allocates only
/// for strings that hold escapes.
class JsonReader {
public:
    /// @param text     the document; viewed, must outlive the reader and the strings it returns
    /// @param who      begins every error's sentence: "<who> byte 17: expected ':', found '}'"
    /// @param nesting  objects and arrays open at once, at most
    /// @throws FormatError if `text` is not UTF-8, as all functions do for what they do not find
    JsonReader(std::string_view text, std::string who, int nesting = SafetensorsLimits::nesting)
        : text_(text), who_(std::move(who)), nesting_(nesting) {
        position_ = utf8_prefix(text_);
        if (position_ != text_.size()) fail_here("not valid UTF-8");
        position_ = 0;
    }

    void begin_object() { open('{', "an object"); }
    void begin_array() { open('[', "an array"); }

    /// Moves to the next member of the object that is open and reads its key and the colon.
    /// @return false at the end of the object, which is then closed
    bool next_key(std::string_view& key, std::string& scratch) {
        if (!next_item('}')) return false;
        key = string(scratch);
        expect(':', "':'");
        return true;
    }

    /// Moves to the next element of the array that is open.
    /// @return false at the end of the array, which is then closed
    bool next_element() { return next_item(']'); }

    /// @return the string's text: a view of the document if it holds no escapes, else of `scratch`
    std::string_view string(std::string& scratch) {
        expect('"', "a string");
        const std::size_t begin = position_;
        std::size_t copied = begin;
        scratch.clear();
        for (;; ++position_) {
            if (position_ == text_.size()) fail_here("expected '\"' at the end of a string");
            const char c = text_[position_];
            if (c == '"') break;
            if (static_cast<unsigned char>(c) < 0x20) fail_here("control characters need a \\u");
            if (c != '\\') continue;
            scratch.append(text_, copied, position_ - copied);
            append_escape(scratch);
            copied = position_ + 1;
        }
        const std::size_t end = position_++;
        if (copied == begin) return text_.substr(begin, end - begin);
        scratch.append(text_, copied, end - copied);
        return scratch;
    }

    std::uint64_t unsigned_integer() {
        skip_space();
        if (!is_digit(peek())) fail_here("expected an unsigned integer");
        std::uint64_t value = 0;
        const std::size_t begin = position_;
        for (; is_digit(peek()); ++position_) {
            if (value == 0 && position_ != begin) fail_here("integers have no leading zeros");
            const auto digit = static_cast<std::uint64_t>(peek() - '0');
            if (value > (std::numeric_limits<std::uint64_t>::max() - digit) / 10)
                fail_here("integer above 2^64 - 1");
            value = 10 * value + digit;
        }
        if (peek() == '.' || peek() == 'e' || peek() == 'E')
            fail_here("integers have no fraction and no exponent");
        return value;
    }

    /// Reads past one value of any kind, which must be well formed and is then forgotten: keys in
    /// it may come twice. As deep as `nesting` allows, itself included.
    void skip_value() {
        std::string scratch;
        std::string_view key;
        skip_space();
        switch (peek()) {
            case '{':
                begin_object();
                while (next_key(key, scratch)) skip_value();
                return;
            case '[':
                begin_array();
                while (next_element()) skip_value();
                return;
            case '"':
                string(scratch);
                return;
            case 't':
                return skip_word("true");
            case 'f':
                return skip_word("false");
            case 'n':
                return skip_word("null");
            default:
                return skip_number();
        }
    }

    /// Checks that only padding is left.
    void finish() {
        while (peek() == ' ') ++position_;
        if (position_ != text_.size()) fail_here("expected nothing but spaces");
    }

    /// Checks that only white space is left, such as the new line at the end of a text file.
    void finish_text() {
        skip_space();
        if (position_ != text_.size()) fail_here("expected nothing but white space");
    }

    /// Throws FormatError that says where the reader stands and what it sees there.
    [[noreturn]] void fail_here(const char* what) const {
        std::string found = "the end";
        if (position_ < text_.size()) {
            const char c = text_[position_];
            if (c >= ' ' && c <= '~')
                found = std::string("'") + c + "'";
            else
                found = "byte value " + std::to_string(static_cast<unsigned char>(c));
        }
        fail<FormatError>(who_, " byte ", position_, ": ", what, ", found ", found);
    }

private:
    static bool is_digit(char c) { return c >= '0' && c <= '9'; }

    char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

    void skip_space() {
        while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') ++position_;
    }

    void expect(char c, const char* what) {
        skip_space();
        if (peek() != c) fail_here((std::string("expected ") + what).c_str());
        ++position_;
    }

    void skip_word(std::string_view word) {
        if (!text_.substr(position_).starts_with(word)) fail_here("expected a value");
        position_ += word.size();
    }

    void skip_number() {
        if (peek() == '-') ++position_;
        if (peek() == '0')
            ++position_;  // no digit may follow, as nothing that is asked for begins with one
        else
            skip_digits("expected a value");
        if (peek() == '.') {
            ++position_;
            skip_digits("expected a digit");
        }
        if (peek() == 'e' || peek() == 'E') {
            ++position_;
            if (peek() == '+' || peek() == '-') ++position_;
            skip_digits("expected a digit");
        }
    }

    void skip_digits(const char* otherwise) {
        if (!is_digit(peek())) fail_here(otherwise);
        while (is_digit(peek())) ++position_;
    }

    void open(char bracket, const char* what) {
        expect(bracket, what);
        if (depth_ == nesting_) {
            --position_;
            fail_here(("nested deeper than " + std::to_string(nesting_) + " levels").c_str());
        }
        ++depth_;
        at_first_ = true;
    }

    bool next_item(char bracket) {
        skip_space();
        if (peek() == bracket) {
            ++position_;
            --depth_;
            at_first_ = false;  // what was closed is an item of what encloses it
            return false;
        }
        if (!at_first_) expect(',', bracket == '}' ? "',' or '}'" : "',' or ']'");
        at_first_ = false;
        return true;
    }

    /// Decodes the escape at position_ and leaves position_ on its last byte.
    void append_escape(std::string& out) {
        ++position_;
        switch (peek()) {
            case '"':
            case '\\':
            case '/':
                out += peek();
                return;
            case 'b':
                out += '\b';
                return;
            case 'f':
                out += '\f';
                return;
            case 'n':
                out += '\n';
                return;
            case 'r':
                out += '\r';
                return;
            case 't':
                out += '\t';
                return;
            case 'u':
                break;
            default:
                fail_here("expected an escape such as \\n after '\\'");
        }
        std::uint32_t code = hex4();
        if (code >= 0xdc00 && code <= 0xdfff) fail_here("low surrogate without a high one");
        if (code >= 0xd800 && code <= 0xdbff) {
            ++position_;
            if (peek() != '\\') fail_here("expected the low surrogate");
            ++position_;
            if (peek() != 'u') fail_here("expected the low surrogate");
            const std::uint32_t low = hex4();
            if (low < 0xdc00 || low > 0xdfff) fail_here("expected the low surrogate");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        append_utf8(out, code);
    }

    /// The four digits after the 'u' at position_; leaves position_ on the last.
    std::uint32_t hex4() {
        std::uint32_t code = 0;
        for (int i = 0; i < 4; ++i) {
            ++position_;
            const char c = peek();
            int digit = 0;
            if (is_digit(c))
                digit = c - '0';
            else if (c >= 'a' && c <= 'f')
                digit = c - 'a' + 10;
            else if (c >= 'A' && c <= 'F')
                digit = c - 'A' + 10;
            else
                fail_here("expected four hexadecimal digits");
            code = code << 4 | static_cast<std::uint32_t>(digit);
        }
        return code;
    }

    static void append_utf8(std::string& out, std::uint32_t code) {
        const auto tail = [&](int shift) {
            out += static_cast<char>(0x80 | ((code >> shift) & 0x3f));
        };
        if (code < 0x80) {
            out += static_cast<char>(code);
        } else if (code < 0x800) {
            out += static_cast<char>(0xc0 | code >> 6);
            tail(0);
        } else if (code < 0x10000) {
            out += static_cast<char>(0xe0 | code >> 12);
            tail(6);
            tail(0);
        } else {
            out += static_cast<char>(0xf0 | code >> 18);
            tail(12);
            tail(6);
            tail(0);
        }
    }

    std::string_view text_;
    std::string who_;
    std::size_t position_ = 0;
    int nesting_;
    int depth_ = 0;
    bool at_first_ = true;
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_JSON_HPP
